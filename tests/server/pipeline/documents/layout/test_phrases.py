from __future__ import annotations

from tests.server.pipeline.documents.layout.drawing import CHAR, HEIGHT, boxes, cell, table

from turret_server.pipeline.documents.layout.lines import find_lines
from turret_server.pipeline.documents.layout.phrases import find_phrases
from turret_server.pipeline.documents.page import Word

PROSE = [
    "the quick brown fox jumps over the lazy dog and runs",
    "away before anyone can catch it by its long red tail",
    "which it waves about as if to say that none of them",
]


def phrases(words: list[Word]) -> list[list[str]]:
    found, rows = find_lines(boxes(words))
    return [
        [" ".join(found.text[i] for i in phrase.words) for phrase in line.phrases]
        for line in find_phrases(found, rows, CHAR / HEIGHT)
    ]


def spread(y: float, text: str, gap: float) -> list[Word]:
    """The words of `text`, `gap` apart."""
    words: list[Word] = []
    x = 0.0
    for part in text.split():
        words += cell(x, y, part)
        x += CHAR * len(part) + gap
    return words


def test_prose_is_one_phrase_a_line():
    words = [word for i, line in enumerate(PROSE) for word in cell(0, 12 * i, line)]
    assert phrases(words) == [[line] for line in PROSE]


def test_a_gap_much_wider_than_the_pages_spaces_parts_phrases():
    words = [word for i, line in enumerate(PROSE) for word in cell(0, 12 * i, line)]
    words += cell(0, 50, "Name:") + cell(25 + 2 * CHAR, 50, "Anna Berg")
    assert phrases(words)[-1] == ["Name:", "Anna Berg"]


def test_justified_lines_stay_whole():
    # Wide spaces are this page's spaces.
    words = [word for i, line in enumerate(PROSE) for word in spread(12 * i, line, 5.0 + i)]
    assert phrases(words) == [[line] for line in PROSE]


def test_a_narrow_gap_in_a_wide_corridor_parts_cells():
    # Between the two long numbers of the third row there is hardly more than a space.
    rows = [["1", "2"], ["30", "40"], ["1,234,567", "7,654,321"], ["5", "6"], ["70", "8"]]
    words = table(rows, [(100, "right"), (150, "right")])
    gap = 150 - 9 * CHAR - 100
    assert gap == CHAR
    assert phrases(words) == rows


def test_spaces_in_a_row_of_equal_words_are_no_corridor():
    rows = ["10 years", "20 years", "30 years", "40 years", "50 years", "60 years"]
    words = [word for i, row in enumerate(rows) for word in cell(0, 12 * i, row)]
    assert phrases(words) == [[row] for row in rows]


def test_prose_under_a_table_is_no_row_of_it():
    rows = [["1", "2", "3", "4"]] * 6
    words = table(rows, [(20 + 60 * i, "left") for i in range(4)])
    words += spread(72, PROSE[0], 5.0)
    assert phrases(words)[-1] == [PROSE[0]]


def test_a_line_far_above_a_table_is_no_row_of_it():
    # One of its spaces is where white goes down between the columns.
    rows = [["Item", "Amount"], *[["Screwdriver", "298.00"]] * 4]
    words = spread(0, "Date: 3 May 2024", 5.0) + table(rows, [(0, "left"), (120, "right")], y=60)
    assert phrases(words) == [["Date: 3 May 2024"], *rows]


def test_a_bullet_or_a_letter_stays_with_its_item():
    words = [word for i, line in enumerate(PROSE) for word in cell(0, 12 * i, line)]
    for y, mark in ((50, "•"), (62, "b)"), (74, "12.")):
        words += cell(0, y, mark) + cell(CHAR * len(mark) + 3 * CHAR, y, "an item of a list")
    assert phrases(words)[3:] == [[f"{mark} an item of a list"] for mark in ("•", "b)", "12.")]
