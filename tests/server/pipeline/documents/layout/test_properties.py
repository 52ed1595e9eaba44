"""What holds for every page."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turret_server.pipeline.documents.layout import LayoutOptions, Mode, lay_out
from turret_server.pipeline.documents.page import Page, Word, upright

coordinate = st.one_of(
    st.integers(0, 40).map(lambda n: n * 7.0),
    st.floats(-1e9, 1e9),
    st.sampled_from([0.0, -1e15, 1e15]),
)
texts = st.one_of(
    st.sampled_from(
        ["a", "Total:", "1,234.50", "$", "سلام", "你好", "e\u0301", "👩\u200d💻", "two words", "."]
    ),
    st.text(min_size=1, max_size=12),
)
words = st.builds(Word, text=texts, quad=st.tuples(*[coordinate] * 8))
# Words in rows and columns, as pages have them.
cells = st.builds(
    lambda text, column, row, width: Word(
        text, upright(column * 9.0, row * 4.0, column * 9.0 + width, row * 4.0 + 3)
    ),
    texts,
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 20),
)
pages = st.lists(st.one_of(words, cells), max_size=40).map(
    lambda ws: Page(ws, width=600, height=800)
)
grids = st.lists(cells, min_size=1, max_size=60).map(lambda ws: Page(ws, width=600, height=800))


@pytest.mark.parametrize("mode", get_args(Mode))
@given(page=pages)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_spans_hold_each_word_once(mode: Mode, page: Page):
    laid_out = lay_out(page, LayoutOptions(mode=mode))
    covered: Counter[int] = Counter()
    for word, (start, end) in zip(page.words, laid_out.spans, strict=True):
        text = " ".join(word.text.split())
        if text:
            assert laid_out.text[start:end] == text
            covered.update(range(start, end))
        else:
            assert (start, end) == (-1, -1)
    assert all(count == 1 for count in covered.values())
    # What no word covers is spaces and line ends.
    rest = "".join(c for i, c in enumerate(laid_out.text) if i not in covered)
    assert not rest.strip(" \n")


@pytest.mark.parametrize("mode", ["turret", "plain"])
@given(page=pages)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_words_are_neither_glued_nor_cut(mode: Mode, page: Page):
    text = lay_out(page, LayoutOptions(mode=mode)).text
    assert Counter(text.split()) == Counter(part for w in page.words for part in w.text.split())
    assert all(line == line.rstrip() for line in text.split("\n"))


@given(page=pages, data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_order_of_the_words_makes_no_difference(page: Page, data: st.DataObject):
    shuffled = Page(data.draw(st.permutations(page.words)), width=page.width, height=page.height)
    assert lay_out(shuffled).text == lay_out(page).text


@given(
    page=grids,
    scale=st.sampled_from([0.25, 2.0, 64.0]),
    dx=st.integers(-99, 99),
    dy=st.integers(-99, 99),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_neither_scale_nor_place_make_a_difference(page: Page, scale: float, dx: int, dy: int):
    moved = [
        Word(w.text, tuple(scale * (v + (dx, dy)[i % 2]) for i, v in enumerate(w.quad)))  # pyright: ignore[reportArgumentType]
        for w in page.words
    ]
    assert lay_out(Page(moved, width=600 * scale, height=800 * scale)).text == lay_out(page).text
