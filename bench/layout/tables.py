"""Tables whose cells are known: ruled, unruled, numeric, wide, of several lines, from the right."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from bench.layout.sheet import SPACE, Align, Relation, Sheet, advance
from bench.layout.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Column:
    """A column: what is in it, and where it stands there."""

    head: list[str]
    draw: Callable[[], list[str]]
    align: Align
    max_em: float = 1e9  # longer cells are broken into lines


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a table stands.

    Attributes:
        end: the baseline that a next row would have.
        middles: of its columns.
        cells: their numbers, row by row.
    """

    end: float
    middles: list[float]
    cells: list[list[int | None]]


Grid = list[list[list[list[str]] | None]]  # rows of cells, each its lines of words, or empty


def relations_of(grid: Sequence[Sequence[int | None]]) -> set[Relation]:
    """Of cells by number: the next cell that is not empty, in each row and each column."""
    found: set[Relation] = set()
    for row in grid:
        there = [cell for cell in row if cell is not None]
        found |= {(a, b, "right") for a, b in pairwise(there)}
    for column in zip(*grid, strict=True):
        there = [cell for cell in column if cell is not None]
        found |= {(a, b, "below") for a, b in pairwise(there)}
    return found


def broken(words: list[str], max_em: float) -> list[list[str]]:
    """Words in lines of at most so many em."""
    lines: list[list[str]] = [[]]
    for word in words:
        if lines[-1] and advance(" ".join([*lines[-1], word])) > max_em:
            lines.append([])
        lines[-1].append(word)
    return lines


def fill_in(columns: list[Column], rows: int, empty: float, rng: random.Random) -> Grid:
    """A head and so many rows, a share of whose cells is empty (never the first's)."""
    grid: Grid = [[[list(column.head)] for column in columns]]
    for _ in range(rows):
        grid.append(
            [
                None if i and rng.random() < empty else broken(column.draw(), column.max_em)
                for i, column in enumerate(columns)
            ]
        )
    return grid


def put_table(
    sheet: Sheet,
    grid: Grid,
    aligns: list[Align],
    top: float,
    size: float,
    gap: float,
    leading: float,
    *,
    left: float = 80.0,
    rtl: bool = False,
) -> Placed:
    """Set a table and record its cells.

    Args:
        gap: between the widest cells of neighbouring columns, in em.
        leading: distance of rows, in em.
        rtl: the first column stands rightmost.
    """
    widths = [
        max(
            (sum(map(advance, line)) + SPACE * (len(line) - 1)) * size
            for row in grid
            if (cell := row[i]) is not None
            for line in cell
        )
        for i in range(len(aligns))
    ]
    edges = [left]
    for width in widths[:-1]:
        edges.append(edges[-1] + width + gap * size)
    if rtl:
        edges = [sheet.width - edge - width for edge, width in zip(edges, widths, strict=True)]
    numbers: list[list[int | None]] = []
    baseline = top + size
    for row in grid:
        numbers.append([])
        for cell, edge, width, align in zip(row, edges, widths, aligns, strict=True):
            if cell is None:
                numbers[-1].append(None)
                continue
            x = {"left": edge, "centre": edge + width / 2, "right": edge + width}[align]
            for i, line in enumerate(cell):
                sheet.put(line, x, baseline + i * 1.2 * size, size, align, rtl=rtl)
            numbers[-1].append(len(sheet.truth.cells))
            sheet.truth.cells.append(tuple(word for line in cell for word in line))
        lines = max(len(cell) for cell in row if cell is not None)
        # Of lines beside each other a text cannot have cells in a row, and each cell's lines too.
        if lines == 1:
            sheet.truth.order.extend(tuple(cell[0]) for cell in row if cell is not None)
        else:
            sheet.truth.order.append(())
        baseline += (leading + 1.2 * (lines - 1)) * size
    sheet.truth.relations.update(relations_of(numbers))
    middles = [edge + width / 2 for edge, width in zip(edges, widths, strict=True)]
    return Placed(baseline, middles, numbers)


def put_title(sheet: Sheet, vocabulary: Vocabulary, size: float = 30.0) -> float:
    """A heading; returns where it ends."""
    title = [word.capitalize() for word in vocabulary.words(3)]
    sheet.put(title, 80.0, 110.0, size)
    sheet.truth.order.append(tuple(title))
    return 160.0


def put_note(sheet: Sheet, vocabulary: Vocabulary, top: float, size: float) -> None:
    """Two lines of running text, as wide as the page."""
    for i in range(2):
        line = [vocabulary.filler() for _ in range(11)]
        sheet.put(line, 80.0, top + (2 + 1.3 * i) * size, size)
        sheet.truth.order.append(tuple(line))


def _columns(vocabulary: Vocabulary, kinds: str, max_em: float = 1e9) -> list[Column]:
    """Columns by letter: (n)ame, (c)ode, (d)ate, (q)uantity, (a)mount, (t)ext."""
    rng = random.Random(len(kinds))
    draws: dict[str, tuple[Callable[[], list[str]], Align]] = {
        "n": (lambda: vocabulary.words(rng.randint(1, 3)), "left"),
        "t": (lambda: [vocabulary.filler() for _ in range(rng.randint(2, 9))], "left"),
        "c": (lambda: [vocabulary.code()], "left"),
        "d": (lambda: [vocabulary.date()], "left"),
        "q": (lambda: [vocabulary.count()], "right"),
        "a": (lambda: [vocabulary.amount(5)], "right"),
    }
    return [
        Column([word.capitalize() for word in [vocabulary.filler()]], *draws[kind], max_em)
        for kind in kinds
    ]


def _table(
    sheet: Sheet, kinds: str, rows: int, size: float, gap: float, leading: float,
    *, empty: float = 0.0, max_em: float = 1e9,
) -> None:  # fmt: skip
    vocabulary = Vocabulary(sheet.rng)
    columns = _columns(vocabulary, kinds, max_em)
    grid = fill_in(columns, rows, empty, sheet.rng)
    aligns = [column.align for column in columns]
    placed = put_table(sheet, grid, aligns, put_title(sheet, vocabulary), size, gap, leading)
    put_note(sheet, vocabulary, placed.end, size)


def ruled(sheet: Sheet) -> None:
    """Cells close to each other, as only rules part them on paper; the rules are not in words."""
    _table(sheet, "cndqa", 14, 22.0, sheet.rng.uniform(0.6, 0.9), 1.9)


def unruled(sheet: Sheet) -> None:
    """Space alone parts the columns; some cells are empty."""
    _table(sheet, "ndqaa", 16, 22.0, sheet.rng.uniform(1.5, 3.5), 1.5, empty=0.15)


def numeric(sheet: Sheet) -> None:
    """Right-aligned numbers of different lengths, close together, under left-aligned names."""
    _table(sheet, "naaqa", 18, 22.0, 1.2, 1.5, empty=0.05)


def wide(sheet: Sheet) -> None:
    """Twelve narrow columns in small print."""
    _table(sheet, "cdqaqaqaqaqa", 20, 15.0, 1.0, 1.6, empty=0.05)


def multi_line(sheet: Sheet) -> None:
    """Cells of one to four lines beside cells of one."""
    _table(sheet, "ctqat", 9, 20.0, 1.6, 2.4, max_em=14.0)


def centred(sheet: Sheet) -> None:
    """Cells of one to three words in the middles of their columns."""
    vocabulary = Vocabulary(sheet.rng)
    columns = [replace(column, align="centre") for column in _columns(vocabulary, "ncnqa")]
    grid = fill_in(columns, 14, 0.1, sheet.rng)
    top = put_title(sheet, vocabulary)
    put_table(sheet, grid, ["centre"] * len(columns), top, 22.0, 1.5, 1.6)


def spanning(sheet: Sheet) -> None:
    """Heads over two columns each, above the heads of the columns."""
    vocabulary = Vocabulary(sheet.rng)
    columns = _columns(vocabulary, "naqaq")
    grid = fill_in(columns, 14, 0.0, sheet.rng)
    top = put_title(sheet, vocabulary)
    aligns = [column.align for column in columns]
    placed = put_table(sheet, grid, aligns, top + 36.0, 22.0, 2.0, 1.5)
    truth, heads = sheet.truth, placed.cells[0]
    spans = []
    for first in (1, 3):
        text = (vocabulary.filler().capitalize(), vocabulary.filler(), vocabulary.filler())
        middle = (placed.middles[first] + placed.middles[first + 1]) / 2
        sheet.put(text, middle, top + 22.0, 22.0, "centre")
        spans.append(len(truth.cells))
        truth.cells.append(text)
        for head in heads[first : first + 2]:
            assert head is not None
            truth.relations.add((spans[-1], head, "below"))
    truth.relations.add((spans[0], spans[1], "right"))
    truth.order.clear()  # whether a head comes before what it spans is a matter of taste


def side_by_side(sheet: Sheet) -> None:
    """Two tables beside each other, whose rows do not match."""
    vocabulary = Vocabulary(sheet.rng)
    top = put_title(sheet, vocabulary)
    for left, kinds, rows, leading in ((80.0, "nqa", 14, 1.7), (720.0, "cda", 16, 1.5)):
        columns = _columns(vocabulary, kinds)
        grid = fill_in(columns, rows, 0.0, sheet.rng)
        aligns = [column.align for column in columns]
        placed = put_table(sheet, grid, aligns, top, 20.0, 1.5, leading, left=left)
        sheet.truth.loose.update(row[-1] for row in placed.cells if row[-1] is not None)
    sheet.truth.order.clear()  # row by row or table by table: both are read


def chinese(sheet: Sheet) -> None:
    """Characters twice as wide as figures, in a table and in lines without spaces."""
    vocabulary = Vocabulary(sheet.rng)
    title = [vocabulary.han(5, 8)]
    sheet.put(title, 80.0, 110.0, 30.0)
    sheet.truth.order.append(tuple(title))
    heads = [[vocabulary.han(2, 3)] for _ in range(4)]
    columns = [
        Column(heads[0], lambda: [vocabulary.han(2, 8)], "left"),
        Column(heads[1], lambda: [vocabulary.han(1, 4)], "left"),
        Column(heads[2], lambda: [vocabulary.count()], "right"),
        Column(heads[3], lambda: [vocabulary.amount(5)], "right"),
    ]
    grid = fill_in(columns, 14, 0.05, sheet.rng)
    aligns = [column.align for column in columns]
    end = put_table(sheet, grid, aligns, 160.0, 24.0, 1.5, 1.6).end
    for i in range(4):
        line = (vocabulary.han(30, 38),)
        sheet.put(line, 80.0, end + (2 + 1.5 * i) * 24.0, 24.0)
        sheet.truth.order.append(line)


def hebrew(sheet: Sheet) -> None:
    """From right to left: a table whose first column stands rightmost, and running text."""
    vocabulary = Vocabulary(sheet.rng)
    sheet.truth.mirrored = True
    right = sheet.width - 80.0

    def put_line(words: list[str], baseline: float, size: float) -> None:
        sheet.put(words, right, baseline, size, "right", rtl=True)
        sheet.truth.order.append(tuple(words))

    put_line([vocabulary.hebrew() for _ in range(3)], 110.0, 30.0)
    heads = [[vocabulary.hebrew()] for _ in range(4)]
    columns = [
        Column(heads[0], lambda: [vocabulary.hebrew() for _ in range(2)], "right"),
        Column(heads[1], lambda: [vocabulary.hebrew()], "right"),
        Column(heads[2], lambda: [vocabulary.count()], "left"),
        Column(heads[3], lambda: [vocabulary.amount(5)], "left"),
    ]
    grid = fill_in(columns, 12, 0.0, sheet.rng)
    aligns = [column.align for column in columns]
    end = put_table(sheet, grid, aligns, 160.0, 24.0, 1.5, 1.6, rtl=True).end
    for i in range(4):
        put_line([vocabulary.hebrew() for _ in range(10)], end + (2 + 1.5 * i) * 24.0, 24.0)
