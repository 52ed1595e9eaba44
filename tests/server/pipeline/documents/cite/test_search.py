"""Runs, against a search that tries everything; and words with a letter wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turret_server.pipeline.documents.cite.readings import Reading
from turret_server.pipeline.documents.cite.search import MAX_OCCURRENCES, Search
from turret_server.pipeline.documents.cite.spelling import Speller

hold = settings(derandomize=True, deadline=None, max_examples=200)
KEYS = st.lists(st.sampled_from("abc"), max_size=12)


def reading(keys: list[str]) -> Reading:
    return Reading(keys, [(at,) for at in range(len(keys))])


@hold
@given(pages=st.lists(st.lists(KEYS, min_size=1, max_size=2), max_size=3), answer=KEYS)
def test_the_longest_runs_are_found(pages: list[list[list[str]]], answer: list[str]) -> None:
    search = Search([[reading(keys) for keys in page] for page in pages], answer)
    needle = search.encode(answer)
    texts = [(number, "".join(keys)) for number, page in enumerate(pages) for keys in page]
    for at, length in enumerate(search.longest(needle)):
        longest = [end for end in range(at + 1, len(answer) + 1)
                   if any("".join(answer[at:end]) in text for _, text in texts)]  # fmt: skip
        assert at + length == max(longest, default=at)
        if length:
            run = "".join(answer[at : at + length])
            places = search.occurrences(needle[at : at + length])
            assert set(places) == {
                (page, start)
                for page, text in texts
                for start in range(len(text))
                if text.startswith(run, start)
            }
            for (_, first), place in places.items():
                assert search.words(place, length) == tuple(range(first, first + length))


def test_occurrences_are_limited() -> None:
    search = Search([[reading(["a"] * 5000)]], ["a"])
    assert len(search.occurrences(search.encode(["a"]))) == MAX_OCCURRENCES


def edits(first: str, second: str) -> int:
    """Levenshtein's distance, by its definition."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        edits(first[1:], second[1:]) + (first[0] != second[0]),
        edits(first[1:], second) + 1,
        edits(first, second[1:]) + 1,
    )


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("nortwind", ("northwind", 1)),
        ("northwimd", ("northwind", 1)),
        ("nrothwind", ("northwind", 2)),
        ("xxrthwind", ("northwind", 2)) ,
        ("nxrxhxind", None),
        ("tota", ("total", 1)),
        ("tofsl", None),
        ("tot", None),
        ("x" * 65, None),
    ],
)  # fmt: skip
def test_a_letter_or_two_may_differ(word: str, nearest: tuple[str, int] | None) -> None:
    assert Speller(["northwind", "total", "x" * 66]).nearest(word) == nearest


def test_numbers_are_never_misspelt() -> None:
    speller = Speller(["12345", "inv2024", "abcd1"])
    assert [speller.nearest(word) for word in ("12346", "inv2025", "abcd", "abcd2")] == [None] * 4


WORDS = st.text(alphabet=st.sampled_from("ab"), min_size=3, max_size=6)


@hold
@given(words=st.lists(WORDS, unique=True, max_size=8), word=WORDS)
def test_the_nearest_word_is_found(words: list[str], word: str) -> None:
    found = Speller(words).nearest(word)
    distances = [edits(word, other) for other in words]
    if len(word) < 4 or min(distances, default=9) > 1:
        assert found is None
    else:
        best = min(distances)
        assert found is not None
        assert found[1] == best == edits(word, found[0])


def test_look_ups_share_a_limit() -> None:
    speller = Speller([f"aaaa{letter}" for letter in "bcdefgh"] + ["xyzzy"], max_comparisons=7)
    assert speller.nearest("aaaai") is not None
    assert speller.nearest("xyzzz") is None
