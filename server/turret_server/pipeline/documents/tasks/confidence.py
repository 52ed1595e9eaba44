"""Replies of the form `[confidence], [answer]`, and the best of several."""

from __future__ import annotations

import re
from collections.abc import Iterable

from turret_server.pipeline.documents.tasks.answers import span_answer
from turret_server.pipeline.documents.tasks.task import Answer

MAX_CONFIDENCE = 100  # no later page can be better: the search may end

_FORM = re.compile(
    r"\[?(?:confidence(?: score)?\s*[:=]?\s*)?"
    r"\[?(?P<sign>-?)(?P<score>\d{1,9}(?:\.\d{1,9})?)\s*(?:%|/\s*100)?\s*\]?\s*"
    # A comma between digits belongs to a number: "1,234" has no confidence.
    r"(?:,(?!\d)|[;:\n|])\s*"
    r"(?:answer\s*[:=]\s*)?(?P<answer>.*)",
    re.DOTALL | re.IGNORECASE,
)


def scored_answer(text: str) -> Answer:
    """An answer with its confidence, clamped to 0 to 100; a fraction below 1 is read as a share."""
    match = _FORM.fullmatch(text)
    if match is None:
        return span_answer(text)
    score = float(match["score"])
    if "." in match["score"] and score <= 1:
        score *= MAX_CONFIDENCE
    clamped = 0 if match["sign"] else min(round(score), MAX_CONFIDENCE)
    return Answer(span_answer(_without_brackets(match["answer"])).text, confidence=clamped)


def best(answers: Iterable[Answer]) -> int | None:
    """Return the index of the answer with the strictly highest confidence, the first of equals.

    Answers without a confidence count less than any that has one, empty ones not at all; None if
    none is left. MP-DocVQA's scheme in LATIN-Prompt, which skips pages without a confidence.
    """
    found, highest = None, -2
    for at, answer in enumerate(answers):
        score = -1 if answer.confidence is None else answer.confidence
        if answer.text and score > highest:
            found, highest = at, score
    return found


def _without_brackets(text: str) -> str:
    text = text.strip()
    if text.startswith("[") and text.endswith("]") and not set("[]") & set(text[1:-1]):
        return text[1:-1].strip()
    # "[85, Paris]": one pair around both.
    return text[:-1].rstrip() if text.endswith("]") and "[" not in text else text
