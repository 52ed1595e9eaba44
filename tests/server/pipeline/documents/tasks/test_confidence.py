"""Replies of the form `[confidence], [answer]`."""

from __future__ import annotations

import pytest

from turret_server.pipeline.documents.tasks import TASKS, Answer, best, parse


@pytest.mark.parametrize(
    ("raw", "confidence", "text"),
    [
        ("95, Paris", 95, "Paris"),
        ("95,Paris", 95, "Paris"),
        ("[95], [Paris]", 95, "Paris"),
        ("[95, Paris]", 95, "Paris"),
        ("95, Paris, France", 95, "Paris, France"),
        ("95, 1,234.50", 95, "1,234.50"),
        ("95%, Paris", 95, "Paris"),
        ("95/100, Paris", 95, "Paris"),
        ("95: Paris", 95, "Paris"),
        ("95\nParis", 95, "Paris"),
        ("Confidence: 95, Answer: Paris", 95, "Paris"),
        ("Confidence score: 95\nAnswer: Paris", 95, "Paris"),
        ("Answer: 95, Paris", 95, "Paris"),
        ('95, "Paris".', 95, "Paris"),
        ("0.95, Paris", 95, "Paris"),
        ("87.5, Paris", 88, "Paris"),
        ("1, Paris", 1, "Paris"),
        ("150, Paris", 100, "Paris"),
        ("-5, Paris", 0, "Paris"),
        ("0,", 0, ""),
        ("80, [a] and [b]", 80, "[a] and [b]"),
        ("80, see [3]", 80, "see [3]"),
    ],
)
def test_both_parts_are_read(raw: str, confidence: int, text: str) -> None:
    assert parse(TASKS["mp-docvqa-by-page"], raw) == Answer(text, confidence=confidence)


@pytest.mark.parametrize("raw", ["Paris", "1,234", "1,234.50", "Paris, France", "95", "9" * 5000])
def test_an_answer_without_a_confidence_has_none(raw: str) -> None:
    assert parse(TASKS["mp-docvqa-by-page"], raw) == Answer(raw)


@pytest.mark.parametrize(
    ("answers", "index"),
    [
        ([Answer("a", confidence=20), Answer("b", confidence=90), Answer("c", confidence=90)], 1),
        ([Answer("a"), Answer("b", confidence=0)], 1),
        ([Answer("", confidence=90), Answer("b", confidence=10)], 1),
        ([Answer("a"), Answer("b")], 0),
        ([Answer("", confidence=90)], None),
        ([], None),
    ],
)
def test_the_strictly_highest_is_kept(answers: list[Answer], index: int | None) -> None:
    assert best(answers) == index
