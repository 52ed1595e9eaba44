"""What is left of a document that is longer than its budget."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turret_server.errors import PromptTooLong
from turret_server.pipeline.documents.budget import _UNIT, MARK, Fitted, fit


def count(texts: Sequence[str]) -> list[int]:
    """A token for each word, mark, line break, and run of spaces but for single ones."""
    return [len(re.findall(r"\w+|[^\w\s]|\n| {2,}", text)) for text in texts]


def spaces(texts: Sequence[str]) -> list[int]:
    """As a tokenizer does that knows no runs of spaces."""
    return [len(text.split()) + text.count(" ") + text.count("\n") for text in texts]


def test_what_fits_stays_as_it_is() -> None:
    texts = ["a      b\n\n\nc", ""]
    assert fit(texts, "q", count, sum(count(texts))) == Fitted(texts, [0, 1], [])


def test_runs_of_spaces_go_first() -> None:
    fitted = fit(["a      b\n\nc", "    d e  f"], "q", spaces, 20)
    assert fitted == Fitted(["a  b\n\nc", "  d e  f"], [0, 1], [], shrunk=True)


def test_blank_lines_go_next() -> None:
    fitted = fit(["a   b\n \n\n  c\n\nd"], "q", count, 8)
    assert fitted == Fitted(["a  b\n  c\nd"], [0], [], shrunk=True)


PAGES = ["red apples\nare here", "green pears\nare there", "blue plums\nare nowhere"]


def test_the_least_relevant_pages_go_next() -> None:
    fitted = fit(PAGES, "where are plums that are GREEN?", count, 10)
    assert fitted == Fitted(PAGES[1:], [1, 2], [0])


def test_without_a_relevant_page_the_last_go() -> None:
    assert fit(PAGES, "?", count, 10) == Fitted(PAGES[:2], [0, 1], [2])


def test_the_first_page_that_does_not_fit_is_cut_to_its_most_relevant_lines() -> None:
    page = "\n".join(f"line {number}" for number in range(100)) + "\ntotal due\n5.00\nthanks"
    fitted = fit([PAGES[0], page], "What is the total due?", count, 18)
    assert fitted == Fitted([f"{MARK}\ntotal due\n5.00\n{MARK}"], [1], [0], cut=101)


def test_the_rest_of_the_budget_goes_to_the_next_page() -> None:
    page = "plums\n" + "x y z\n" * 50
    fitted = fit([page, "plums plums"], "plums", count, 12)
    assert fitted == Fitted([f"plums\n{MARK}", "plums plums"], [0, 1], [], cut=50)


def test_a_page_that_is_one_line_is_cut_between_words() -> None:
    words = [f"word{number}" for number in range(1000)]
    words[500] = "total"
    [text] = fit([" ".join(words)], "total?", count, 50).texts
    assert text.startswith(f"{MARK}\n")
    assert text.endswith(MARK)
    assert "total" in text
    assert set(text.split()) <= {*words, MARK}


@pytest.mark.parametrize("texts", [[], ["a"], ["a b c", ""]])
@pytest.mark.parametrize("budget", [0, -1])
def test_no_budget_is_an_error(texts: list[str], budget: int) -> None:
    if texts or budget < 0:
        with pytest.raises(PromptTooLong, match="document does not fit: 0 tokens"):
            fit(texts, "q", count, budget)


def test_too_little_for_any_line_is_an_error() -> None:
    with pytest.raises(PromptTooLong, match="3 tokens are left"):
        fit(["one two three four five", ""], "q", count, 3)


LINES = st.text(alphabet=st.sampled_from("ab \n\t年."), max_size=400)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    texts=st.lists(LINES, max_size=5),
    question=LINES,
    budget=st.integers(1, 60),
    each=st.integers(0, 3),
)
def test_the_budget_holds_and_nothing_is_made_up(
    texts: list[str], question: str, budget: int, each: int
) -> None:
    calls: list[int] = []

    def counted(some: Sequence[str]) -> list[int]:
        """Tokens, with some before each text as tokenizers may add them."""
        calls.append(len(some))
        return [each + tokens for tokens in count(some)]

    try:
        fitted = fit(texts, question, counted, budget)
    except PromptTooLong:
        return
    assert sum(counted(fitted.texts)) <= budget
    assert sorted(fitted.pages + fitted.dropped_pages) == list(range(len(texts)))
    for page, text in zip(fitted.pages, fitted.texts, strict=True):
        rest = texts[page].split()
        for word in text.replace(MARK, " ").split():  # a subsequence of the page's words
            if word in rest:
                rest = rest[rest.index(word) + 1 :]
            else:  # a long word may be cut within
                assert any(word in other for other in rest)
    units = max((len(_UNIT.findall(text)) for text in texts), default=1)
    assert len(calls) <= 5 + math.log2(units + 1)
    assert fit(texts, question, counted, budget) == fitted


@settings(derandomize=True, deadline=None, max_examples=200)
@given(text=LINES)
def test_units_make_up_the_text(text: str) -> None:
    assert "".join(_UNIT.findall(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "x" * 400_000,
        "x " * 200_000,
        " " * 400_000,
        "\n" * 400_000,
        "\n \t" * 130_000,
        "年" * 400_000,
    ],
)
def test_hostile_texts_take_time_in_proportion(text: str) -> None:
    def cheap(texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    started = time.process_time()
    with suppress(PromptTooLong):
        fit([text, text], text[:1000], cheap, 1000)
    assert time.process_time() - started < 2.0
