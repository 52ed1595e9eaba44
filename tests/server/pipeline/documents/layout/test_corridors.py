"""Corridors counted by hand, over lines written as strings: one column a character."""

from __future__ import annotations

import re

from turret_server.pipeline.documents.layout.corridors import WIDEST, Gaps, measure_corridors


def gaps(line: str) -> Gaps:
    spans = [(float(m.start()), float(m.end())) for m in re.finditer(r"(?<=\S) +(?=\S)", line)]
    widths = [min(end - start, WIDEST) for start, end in spans]
    left = len(line) - len(line.lstrip())
    return Gaps(spans, widths, float(left), float(len(line.rstrip())), 1.0)


def measure(*lines: str) -> list[list[tuple[int, float]]]:
    return measure_corridors([gaps(line) for line in lines])


def test_a_gap_that_goes_on_counts_the_lines_and_their_widths():
    assert measure("aa   bb", "aaa  bb", "aaaa bb") == [
        [(2, 2.0 + 1.0)],
        [(2, 3.0 + 1.0)],
        [(2, 3.0 + 2.0)],
    ]


def test_a_very_wide_gap_counts_as_a_wide_one():
    assert measure("a b", "a          b")[0] == [(1, WIDEST)]


def test_a_gap_that_ends_with_its_line_counts_nothing():
    assert measure("aa bbbb", "aaaa bb") == [[(0, 0.0)], [(0, 0.0)]]


def test_lines_beside_a_corridor_do_not_end_it():
    assert measure("aa  bb", "aa", "    bb", "aa  bb") == [[(1, 2.0)], [], [], [(1, 2.0)]]


def test_a_corridor_no_line_has_crossed_for_long_is_over():
    assert measure("aa  bb", *["aa"] * 7, "aa  bb")[-1] == [(0, 0.0)]


def test_a_line_that_fills_the_corridors_is_no_row():
    table = ["aa     bb     cc     dd"] * 3
    assert measure(*table, "a bb cc dd ee ff gg hh i")[-1] == [(0, 0.0)] * 8


def test_a_small_gap_within_an_empty_cell_is_none_of_the_columns():
    assert measure(*["a               b"] * 3, "a      x y      b")[-1][1] == (0, 0.0)
