"""What surrounds an answer and is no part of it."""

from __future__ import annotations

import re

from turret_server.pipeline.documents.tasks.task import Answer

_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "„": "“", "‘": "’", "«": "»", "「": "」"}
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
# Shorter last words may be abbreviations that own their stop: "Acme Inc.", "at 5 p.m."
_MIN_WORD_CHARS = 6


def text_answer(text: str) -> Answer:
    """The reply as it is."""
    return Answer(text)


def span_answer(text: str) -> Answer:
    """A passage of the document: the reply without quotes around it and without a final stop."""
    return Answer(_without_quotes(_without_stop(_without_quotes(text))))


def fenced(text: str) -> str:
    """Return what the first code fence holds, or all of a text that has none."""
    match = _FENCE.search(text)
    return match[1] if match else text


def _without_quotes(text: str) -> str:
    if len(text) < 2 or _QUOTES.get(text[0]) != text[-1]:
        return text
    inner = text[1:-1]
    # `"A" and "B"` is not wrapped.
    return text if text[0] in inner or text[-1] in inner else inner.strip()


def _without_stop(text: str) -> str:
    if text.endswith("。"):
        return text[:-1]
    if not text.endswith(".") or text.endswith(".."):
        return text
    words = text[:-1].split()
    if not words or "." in words[-1]:
        return text
    last = words[-1]
    alone, quoted = len(words) == 1, last[-1] in _QUOTES.values()
    keeps = not (alone or quoted or last.isdecimal() or len(last) >= _MIN_WORD_CHARS)
    return text if keeps else text[:-1].rstrip()
