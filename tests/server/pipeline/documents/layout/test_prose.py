from __future__ import annotations

from tests.server.pipeline.documents.layout.drawing import cell, table, text

from turret_server.pipeline.documents.page import Word

LINE = "words of running text that fill"


def column(x: float, mark: str, lines: int, y: float = 0.0) -> list[Word]:
    return [w for i in range(lines) for w in cell(x, y + 12 * i, f"{mark}{i:02} {LINE}")]


def marks(words: list[Word]) -> list[str]:
    """The first word of each phrase of running text, in the order of the text."""
    return [word for word in text(words).split() if word[1:].isdigit()]


def expected(*columns: tuple[str, int]) -> list[str]:
    return [f"{mark}{i:02}" for mark, lines in columns for i in range(lines)]


def test_columns_of_prose_are_read_one_after_the_other():
    words = column(0, "a", 12) + column(210, "b", 12) + column(420, "c", 9)
    assert marks(words) == expected(("a", 12), ("b", 12), ("c", 9))


def test_columns_need_not_share_their_lines():
    words = column(0, "a", 12) + column(210, "b", 12, y=6)
    assert marks(words) == expected(("a", 12), ("b", 12))


def test_what_goes_across_is_read_before_and_after():
    title = cell(200, -40, "A title across the two columns")
    foot = cell(0, 200, "A note across the page, below all the columns, wide enough to cross")
    laid_out = text(title + column(0, "a", 10) + column(210, "b", 10) + foot)
    lines = [line.strip() for line in laid_out.split("\n") if line.strip()]
    assert lines[0].startswith("A title")
    assert lines[1].startswith("a00")
    assert lines[-2].startswith("b09")
    assert lines[-1].startswith("A note")


def test_columns_of_a_table_are_read_across():
    rows = [[f"item {i}", f"{LINE} {i}", "1.00"] for i in range(12)]
    laid_out = text(table(rows, [(0, "left"), (80, "left"), (320, "right")]))
    assert [line.split()[1] for line in laid_out.split("\n")] == [str(i) for i in range(12)]


def test_a_few_lines_side_by_side_are_read_across():
    words = column(0, "a", 3) + column(210, "b", 3)
    assert marks(words) == ["a00", "b00", "a01", "b01", "a02", "b02"]
