"""Corridors counted by hand, over lines written as strings: one column a character."""

from __future__ import annotations

import re

from turret_server.pipeline.documents.layout.corridors import WIDEST, Gaps, measure_corridors


def gaps(line: str, top: float) -> Gaps:
    spans = [(float(m.start()), float(m.end())) for m in re.finditer(r"(?<=\S) +(?=\S)", line)]
    widths = [min(end - start, WIDEST) for start, end in spans]
    left = len(line) - len(line.lstrip())
    return Gaps(spans, widths, float(left), float(len(line.rstrip())), 1.0, top, top + 1.0)


def measure(*lines: str, pitch: float = 1.0, below: float = 0.0) -> list[list[tuple[int, float]]]:
    """Lines 1 high and `pitch` apart, the last one `below` further down."""
    tops = [pitch * at for at in range(len(lines))]
    tops[-1] += below
    return measure_corridors([gaps(*line) for line in zip(lines, tops, strict=True)])


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


def test_a_corridor_ends_at_white_space_that_is_wide_for_a_line_and_for_the_page():
    table = ["aa  bb"] * 4
    assert [row[0][0] for row in measure(*table, below=2.5)] == [3, 3, 3, 3]
    assert [row[0][0] for row in measure(*table, below=3.5)] == [2, 2, 2, 0]
    assert [row[0][0] for row in measure(*table, pitch=5.0)] == [3, 3, 3, 3]


def test_a_line_that_fills_the_corridors_is_no_row():
    table = ["aa     bb     cc     dd"] * 3
    assert measure(*table, "a bb cc dd ee ff gg hh i")[-1] == [(0, 0.0)] * 8


def test_a_small_gap_within_an_empty_cell_is_none_of_the_columns():
    assert measure(*["a               b"] * 3, "a      x y      b")[-1][1] == (0, 0.0)


def test_a_corridor_leads_into_one_gap_of_a_line_the_widest():
    # The last word of the first cell stands in what is white above.
    rows = [*["aa        bb    cc"] * 3, "aa aaa    bb    cc"]
    assert measure(*rows)[-1] == [(0, 0.0), (3, 3 * WIDEST), (3, 3 * WIDEST)]
