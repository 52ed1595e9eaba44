"""LATIN's rules, each on a page made for it; columns worked out by hand."""

from __future__ import annotations

from turret_server.pipeline.documents.layout import LayoutOptions, lay_out
from turret_server.pipeline.documents.layout.latin import MAX_COLUMN
from turret_server.pipeline.documents.page import Page, Word, upright

LATIN = LayoutOptions(mode="latin")


def page(*words: tuple[str, tuple[float, float, float, float]]) -> Page:
    return Page([Word(text, upright(*box)) for text, box in words], width=600, height=800)


def text(*words: tuple[str, tuple[float, float, float, float]]) -> str:
    return lay_out(page(*words), LATIN).text


def test_a_segment_starts_at_its_left_edge_in_character_widths():
    # 10 characters over 100 units: 10 units a character. 155 / 10 is cut, not rounded.
    assert text(("abcde", (0, 0, 50, 10)), ("fghij", (50, 0, 100, 10))) == "abcdefghij"
    assert text(("abcdefghij", (0, 0, 100, 10)), ("xy", (159, 20, 179, 30))) == (
        "abcdefghij\n" + " " * 15 + "xy"
    )


def test_a_segment_too_late_for_its_column_is_glued_to_the_one_before():
    # The longest line makes characters 10 wide, but "Total:" is set in narrower type.
    words = (
        ("a line of twenty ch.", (0, 20, 200, 30)),
        ("Total:", (0, 0, 30, 10)),
        ("$5", (40, 0, 50, 10)),
    )
    assert text(*words) == "a line of twenty ch.\nTotal:$5"


def test_only_consecutive_segments_share_a_line():
    row = [("a", (0, 0, 10, 10)), ("b", (30, 0, 40, 10))]
    between = ("c", (0, 20, 10, 30))
    assert text(row[0], between, row[1]).count("\n") == 2


def test_a_line_goes_on_while_each_midpoint_lies_inside_the_segment_before():
    # Each is 4 lower than the one before: the third no longer overlaps the first by half.
    words = [(c, (20.0 * i, 4.0 * i, 20.0 * i + 10, 4.0 * i + 10)) for i, c in enumerate("abc")]
    assert "\n" not in text(*words)
    # A midpoint on the edge is outside.
    assert "\n" in text(("a", (0, 0, 10, 10)), ("b", (20, 5, 30, 15)))


def test_the_last_of_the_lines_with_most_characters_gives_the_width():
    first, last = ("abcd", (0, 0, 40, 10)), ("efgh", (0, 20, 80, 30))
    assert text(first, last, ("x", (40, 40, 50, 50))).endswith("\n  x")
    assert text(last, first, ("x", (40, 40, 50, 50))).endswith("\n    x")


def test_spaces_between_segments_do_not_count_as_characters():
    # 4 characters over a line of 80: a gap inside the winning line widens the character.
    line = (("ab", (0, 0, 20, 10)), ("cd", (60, 0, 80, 10)))
    assert text(*line, ("x", (40, 20, 50, 30))) == "ab cd\n  x"


def test_boxes_without_width_count_as_one_unit_a_character():
    assert text(("a", (3, 0, 3, 10))) == "   a"


def test_a_box_far_off_the_page_asks_for_no_more_than_the_limit():
    words = (("abcd", (0, 0, 40, 10)), ("far", (1e9, 20, 1e9 + 30, 30)), ("low", (-1e9, 40, 0, 50)))
    assert [len(line) for line in text(*words).split("\n")] == [4, MAX_COLUMN + 3, 3]


def test_an_empty_page_is_an_empty_text():
    assert lay_out(page(), LATIN).text == ""
    assert lay_out(page(("  ", (0, 0, 1, 1))), LATIN).spans == [(-1, -1)]
