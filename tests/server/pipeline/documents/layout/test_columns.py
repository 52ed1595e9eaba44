from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from turret_server.pipeline.documents.layout.columns import CELL_GAP, place
from turret_server.pipeline.documents.layout.phrases import Line, Phrase


def line(*phrases: tuple[float, float, int]) -> Line:
    return Line([Phrase([], left, right, width) for left, right, width in phrases], 0, 1)


def test_cells_of_a_line_are_two_spaces_apart_and_no_farther():
    assert place([line((0, 3, 3), (90, 95, 5))], 1.0) == [[0, 3 + CELL_GAP]]


def test_edges_that_agree_are_printed_one_above_the_other():
    rows = [line((0, 8, 8), (20, 23, 3)), line((0, 4, 4), (20, 29, 9))]
    assert place(rows, 1.0) == [[0, 10], [0, 10]]


def test_numbers_that_end_together_are_printed_so():
    rows = [
        line((0, 4, 4), (27, 30, 3)),
        line((0, 4, 4), (21, 30, 9)),
        line((0, 4, 4), (29, 30, 1)),
    ]
    ends = [row[1] + width for row, width in zip(place(rows, 1.0), (3, 9, 1), strict=True)]
    assert ends == [15, 15, 15]


def test_centred_cells_are_printed_over_each_other():
    rows = [
        line((0, 4, 4), (18, 32, 14)),
        line((0, 4, 4), (22, 28, 6)),
        line((0, 4, 4), (24, 26, 2)),
    ]
    middles = [row[1] + width / 2 for row, width in zip(place(rows, 1.0), (14, 6, 2), strict=True)]
    assert middles == [13, 13, 13]


def test_a_head_over_two_columns_pushes_them_no_farther_than_it_must():
    rows = [line((10, 40, 12)), line((10, 14, 4), (30, 34, 4)), line((10, 14, 4), (30, 34, 4))]
    assert place(rows, 1.0) == [[0], [0, 6], [0, 6]]


cells = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 12)), min_size=1, max_size=5)


@given(blocks=st.lists(cells, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_does_not_overlap_on_the_page_does_not_overlap_in_print(
    blocks: list[list[tuple[int, int]]],
):
    # Gaps and widths in characters; type of one width, so that any page can be printed as it is.
    rows: list[Line] = []
    for cells in blocks:
        phrases: list[tuple[float, float, int]] = []
        x = 0
        for gap, width in cells:
            x += gap + 1
            phrases.append((x, x + width, width))
            x += width
        rows.append(line(*phrases))
    printed = [
        (phrase.left, phrase.right, start, start + phrase.width)
        for row, starts in zip(rows, place(rows, 1.0), strict=True)
        for phrase, start in zip(row.phrases, starts, strict=True)
    ]
    assert min(start for *_, start, _ in printed) >= 0
    for row, starts in zip(rows, place(rows, 1.0), strict=True):
        for k in range(len(starts) - 1):
            assert starts[k + 1] >= starts[k] + row.phrases[k].width + CELL_GAP
    for left_a, right_a, _, end_a in printed:
        for left_b, _, start_b, _ in printed:
            if right_a <= left_b and left_a < right_a:
                assert end_a <= start_b
