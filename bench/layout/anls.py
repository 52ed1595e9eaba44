"""ANLS: how near an answer comes to one of those that people gave, letter by letter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def anls(answers: Iterable[tuple[str, Sequence[str]]]) -> float:
    """Average normalised Levenshtein similarity, of DocVQA (Biten et al., 2019).

    Args:
        answers: for every question, the answer and all that count as right.
    """
    scores = [similarity(answer, right) for answer, right in answers]
    return sum(scores) / len(scores) if scores else 0.0


def similarity(answer: str, right: Sequence[str]) -> float:
    """The best over the right answers; 0 where half of the letters or more are wrong."""
    return max((_one(answer, truth) for truth in right), default=0.0)


def _one(answer: str, truth: str) -> float:
    answer, truth = answer.strip().lower(), truth.strip().lower()
    longest = max(len(answer), len(truth))
    if not longest:
        return 1.0  # nothing was to be said, and nothing was
    distance = levenshtein(answer, truth) / longest
    return 1.0 - distance if distance < 0.5 else 0.0


def levenshtein(a: str, b: str) -> int:
    """How many letters to put in, take out or replace to make one of the other."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]
