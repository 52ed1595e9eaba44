from __future__ import annotations

from tests.server.pipeline.documents.layout.drawing import CHAR, HEIGHT, boxes, cell, table

from turret_server.pipeline.documents.layout.blocks import find_blocks
from turret_server.pipeline.documents.layout.lines import find_lines
from turret_server.pipeline.documents.layout.phrases import find_phrases
from turret_server.pipeline.documents.page import Word

TABLE = [["alpha", "1", "2"], ["beta", "3", "4"], ["gamma", "5", "6"]]


def sizes(words: list[Word]) -> list[int]:
    """The number of lines of each block."""
    found, rows = find_lines(boxes(words))
    unit = CHAR / HEIGHT
    return [len(block) for block in find_blocks(find_phrases(found, rows, unit), unit)]


def test_rows_that_follow_closely_are_one_block():
    assert sizes(table(TABLE, [(0, "left"), (100, "right"), (200, "right")])) == [3]


def test_groups_of_rows_with_the_same_columns_are_one_block_across_a_gap():
    columns = [(0, "left"), (100, "right"), (200, "right")]
    assert sizes(table(TABLE, columns) + table(TABLE, columns, y=50)) == [6]


def test_rows_with_other_columns_are_another_block_across_a_gap():
    first = table(TABLE, [(0, "left"), (100, "right"), (200, "right")])
    assert sizes(first + table(TABLE, [(0, "left"), (147, "right"), (333, "right")], y=50)) == [
        3,
        3,
    ]


def test_a_row_of_heads_is_one_block_with_the_cells_under_them():
    heads = [["Name", "Count of", "Price"]]
    # Centred over their columns, where cells are aligned by their sides.
    head = table(heads, [(14, "centre"), (97, "centre"), (193, "centre")], y=-22)
    assert sizes(head + table(TABLE, [(0, "left"), (100, "right"), (200, "right")])) == [4]


def test_a_head_goes_with_the_table_it_stands_close_to():
    columns = [(0, "left"), (100, "right"), (200, "right")]
    assert sizes(cell(60, -12, "Head") + table(TABLE, columns)) == [4]
    assert sizes(cell(60, -30, "Head") + table(TABLE, columns)) == [1, 3]


def test_lines_of_a_paragraph_are_one_block():
    words = cell(40, 0, "a paragraph") + cell(40, 12, "of two lines") + cell(0, 40, "and another")
    assert sizes(words) == [2, 1]
