"""BM25 against its formula, and the orders made of it."""

from __future__ import annotations

import math

import pytest

from turret_server.pipeline.documents.relevance import bm25, ranked, words
from turret_server.pipeline.documents.retrieval import ordered


def test_scores_follow_the_formula() -> None:
    texts = ["a b a", "b c", "c d e f"]
    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    expected = idf**2 * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 3 / 3))
    assert bm25(texts, "A!") == pytest.approx([expected, 0, 0])


def test_rare_words_and_short_texts_count_more() -> None:
    first, second, third = bm25(["x rare", "x common", "x common and longer"], "rare common")
    assert first > second > third > 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Straße, STRASSE", ["strasse", "strasse"]),
        ("合計金額 12円", ["合", "計", "金", "額", "12", "円"]),
        ("foo_bar-baz", ["foo", "bar", "baz"]),
        ("Σίσυφος", ["σίσυφοσ"]),
        (" \n.", []),
    ],
)
def test_words_of_any_language(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize("texts", [[], [""], ["", "..."]])
def test_nothing_is_relevant_in_nothing(texts: list[str]) -> None:
    assert bm25(texts, "a") == [0.0] * len(texts)


def test_equals_keep_their_order() -> None:
    assert ranked([1.0, 3.0, 1.0, 3.0]) == [1, 3, 0, 2]


TEXTS = ["none", "k k", "k k k k k k k", "nothing", "k k k"]


def test_documents_stay_as_given() -> None:
    assert ordered(TEXTS, "k", "given") == [0, 1, 2, 3, 4]


def test_the_best_stand_at_both_ends() -> None:
    assert ranked(bm25(TEXTS, "k"))[:3] == [2, 4, 1]
    assert ordered(TEXTS, "k", "edges") == [2, 1, 3, 0, 4]
