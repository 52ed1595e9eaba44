"""Whole pages: what is drawn, and the text it must come to."""

from __future__ import annotations

import time

import pytest
from tests.server.pipeline.documents.layout.drawing import (
    INVOICE,
    INVOICE_TEXT,
    boxed,
    cell,
    page,
    table,
    text,
    turned,
)

from turret_server.pipeline.documents.layout import LayoutOptions, lay_out
from turret_server.pipeline.documents.page import Page, Word, upright

FIVE = ["Five", "words", "on", "one", "line"]


def test_an_invoice_keeps_its_form_and_its_table():
    assert text(INVOICE) == INVOICE_TEXT


@pytest.mark.parametrize("degrees", [90, 180, 270, -3, 2, 93])
def test_a_turned_page_reads_as_the_upright_one(degrees: float):
    assert text(turned(INVOICE, degrees)) == INVOICE_TEXT


@pytest.mark.parametrize("degrees", [-1.5, 1.0])
def test_a_tilt_is_found_from_upright_boxes_too(degrees: float):
    assert text(boxed(turned(INVOICE, degrees))) == INVOICE_TEXT


def test_words_of_another_direction_come_after_the_rest():
    stamp = turned(cell(-100, 20, "RECEIVED TODAY"), -90)
    body = cell(40, 0, "Some more text than that")
    assert text([*stamp, *body]) == "Some more text than that\n\nRECEIVED TODAY"


def test_upright_boxes_around_turned_words_are_read_as_they_run():
    assert text(boxed(turned(INVOICE, -90))) == INVOICE_TEXT
    clockwise = Page(boxed(turned(INVOICE, 90)), width=800, height=600, angle=90)
    assert lay_out(clockwise).text == INVOICE_TEXT


def test_wide_characters_in_tall_boxes_run_down_and_lines_to_the_left():
    words = [Word("二行目です", upright(0, 0, 10, 50)), Word("一行目です", upright(15, 0, 25, 50))]
    assert text(words) == "一行目です\n二行目です"


def test_words_in_one_place_are_still_apart():
    laid_out = text([Word(word, upright(5, 5, 40, 15)) for word in FIVE])
    assert sorted(laid_out.split()) == sorted(FIVE)


def test_a_page_from_right_to_left_begins_its_lines_on_the_right():
    words = table([["10", "כמות"], ["2500", "מחיר כולל"]], [(100, "left"), (300, "right")])
    words = [word for word in words if word.text not in ("מחיר", "כולל")]
    # "price total" as it stands on the page: the first word on the right.
    words += cell(300, 12, "מחיר", "right") + cell(276, 12, "כולל", "right")
    assert text(words) == "כמות       10\nמחיר כולל  2500"


def test_columns_of_a_page_from_right_to_left_can_keep_their_places():
    words = cell(100, 0, "10") + cell(300, 0, "שם", "right")
    assert text(words, LayoutOptions(mirror=False)) == "10  שם"


def test_wide_characters_take_two_columns():
    rows = [["品名", "x"], ["大きい箱", "x"], ["ab", "x"], ["abcd", "x"]]
    laid_out = text(table(rows, [(0, "left"), (200, "left")]))
    assert laid_out == "品名      x\n大きい箱  x\nab        x\nabcd      x"


def test_white_space_within_a_word_is_one_space():
    words = [Word("a\tlong\n line", upright(0, 0, 60, 10)), *cell(0, 12, "b")]
    assert text(words) == "a long line\nb"


@pytest.mark.parametrize(("most", "between"), [(0, "\n"), (1, "\n\n"), (3, "\n\n\n\n")])
def test_a_vertical_gap_is_blank_lines_up_to_a_limit(most: int, between: str):
    words = [*cell(0, 0, "a"), *cell(0, 100, "b")]
    assert text(words, LayoutOptions(max_blank_lines=most)) == f"a{between}b"


def test_no_white_space_beyond_the_last_column():
    stairs = [word for i in range(60) for word in cell(60 * i, 12 * i, "step")]
    laid_out = text(stairs, LayoutOptions(max_columns=20))
    assert max(map(len, laid_out.split("\n"))) == 20 + len("step")


def test_an_empty_page_is_an_empty_text():
    assert lay_out(page([])).text == ""
    assert lay_out(page([Word(" ", upright(0, 0, 1, 1))])).spans == [(-1, -1)]


def hostile(kind: str, count: int) -> Page:
    places = {
        "one point": lambda i: (5, 5, 5, 5),
        "one spot": lambda i: (5, 5, 15, 15),
        "one line": lambda i: (30 * i, 5, 30 * i + 24, 15),
        "one column": lambda i: (5, 12 * i, 29, 12 * i + 10),
        "stairs": lambda i: (5 * i, 5 * i, 5 * i + 24, 5 * i + 10),
        "nested": lambda i: (-i, -i, i, i),
        "far apart": lambda i: (i * 1e290, i * -1e290, i * 1e290 + 10, i * -1e290 + 10),
        "beside": lambda i: (
            (20 * i, 5, 20 * i + 9, 15) if i % 2 else (1e6, 12 * i, 1e6 + 9, 12 * i + 9)
        ),
    }
    return Page([Word(f"w{i}", upright(*places[kind](i))) for i in range(count)], 600, 800)


@pytest.mark.parametrize(
    "kind",
    ["one point", "one spot", "one line", "one column", "stairs", "nested", "far apart", "beside"],
)
def test_hostile_pages_cost_no_more_than_their_words(kind: str):
    start = time.process_time()
    laid_out = lay_out(hostile(kind, 4000))
    # A quadratic step would take minutes; a slow machine takes a fraction of a second.
    assert time.process_time() - start < 5
    assert sorted(laid_out.text.split()) == sorted(f"w{i}" for i in range(4000))
    assert len(laid_out.text) < 4000 * 450
