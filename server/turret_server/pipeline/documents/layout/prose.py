"""Columns of prose: what is read down, not across.

Where running text stands side by side, with a white gutter no line crosses, each column is read to
its end before the next. Cells of a table stand side by side as well, so the evidence must be
strong: many lines, nearly all of them one phrase, and most of them as wide as their column.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from turret_server.pipeline.documents.layout.phrases import Line, Phrase

# A column of prose has at least so many lines, this share of them one phrase, this share of them
# filling so much of its width, and so many columns of print in the middle one.
LINES = 8
WHOLE = 0.8
FULL, FILLED = 0.5, 0.8
PRINT = 20
# No column of a region is narrower than this share of the widest.
EVEN = 0.4
# So many gutters are tried.
TRIED = 4
MOST_BINS = 1000
# Columns side by side, within each other, at most.
DEPTH = 3
# White space above a line, in heights of a line, that ends the longer column of two.
END = 1.0


class Run(NamedTuple):
    """Lines read from top to bottom, and the left margin they are indented from."""

    lines: list[Line]
    margin: float


class Region(NamedTuple):
    """Prose in columns: its first line, the one after its last, and the lines of each column."""

    first: int
    last: int
    columns: list[list[Line]]


def reading_runs(lines: list[Line], unit: float) -> list[Run]:
    """Runs in the order they are read: what goes across the page, and columns of prose.

    Args:
        lines: of a page, from top to bottom; at least one.
        unit: width of a character.
    """
    margin = _margin(lines)
    runs: list[Run] = []
    done = 0
    for first, last, columns in sorted(_regions(lines, unit, DEPTH)):
        if first > done:
            runs.append(Run(lines[done:first], margin))
        runs += [Run(column, _margin(column)) for column in columns]
        done = last
    if done < len(lines):
        runs.append(Run(lines[done:], margin))
    return runs


def _margin(lines: list[Line]) -> float:
    return min(line.phrases[0].left for line in lines)


def _regions(lines: list[Line], unit: float, depth: int) -> list[Region]:
    """Regions of prose in columns, none overlapping another, the longest first."""
    if len(lines) < LINES or not depth:
        return []
    found = [
        (first, last, x)
        for x in _gutters([p for line in lines for p in line.phrases], unit)
        for first, last in _uncrossed(lines, x)
    ]
    found.sort(key=lambda run: run[0] - run[1])
    regions: list[Region] = []
    for first, last, x in found:
        if all(last <= region.first or region.last <= first for region in regions):
            columns = _columns(lines[first:last], x, unit, depth)
            if columns is not None:
                regions.append(Region(first, last, columns))
    return regions


def _columns(lines: list[Line], x: float, unit: float, depth: int) -> list[list[Line]] | None:
    """The columns that the gutter at `x`, and further ones, part; None if not all are prose."""
    columns: list[list[Line]] = []
    for side in _cut(lines, x):
        if _is_prose(side):
            columns.append(side)
            continue
        inner = _regions(side, unit, depth - 1)
        if not inner or inner[0].last - inner[0].first < WHOLE * len(side):
            return None
        first, last, parts = inner[0]
        parts[0] = side[:first] + parts[0]
        parts[-1] = parts[-1] + side[last:]
        columns += parts
    widths = [_width(column) for column in columns]
    return columns if min(widths) >= EVEN * max(widths) else None


def _gutters(phrases: list[Phrase], unit: float) -> list[float]:
    """Places that fewer long phrases cover than places on both sides do: the deepest first."""
    long = [phrase for phrase in phrases if phrase.width >= PRINT]
    if len(long) < 2 * LINES:
        return []
    left, right = np.array([p.left for p in long]), np.array([p.right for p in long])
    start = float(left.min())
    step = max(unit, (float(right.max()) - start) / MOST_BINS)
    count = int((float(right.max()) - start) / step) + 2
    # covered[k]: how many long phrases cover the k-th step, in part.
    covered = np.zeros(count + 1, dtype=np.int64)
    np.add.at(covered, ((left - start) / step).astype(np.int64), 1)
    np.add.at(covered, ((right - start) / step).astype(np.int64) + 1, -1)
    covered = covered.cumsum()[:count]
    rim = np.minimum(np.maximum.accumulate(covered), np.maximum.accumulate(covered[::-1])[::-1])
    depth = rim - covered
    # A valley's floor may be broad: its middle is taken.
    edges = np.flatnonzero(np.diff(depth, prepend=-1, append=-1))
    floors = [
        (int(depth[a]), start + (a + b) / 2 * step)
        for a, b in pairwise(edges.tolist())
        if depth[a] >= LINES and depth[a] > depth[a - 1] and (b >= count or depth[a] > depth[b])
    ]
    floors.sort(reverse=True)
    return [x for _, x in floors[:TRIED]]


def _uncrossed(lines: list[Line], x: float) -> list[tuple[int, int]]:
    """Runs of lines that do not cross `x` and have words on both sides of it."""
    runs: list[tuple[int, int]] = []
    first, sides = 0, [0, 0]
    for number, line in enumerate(lines):
        if any(phrase.left < x < phrase.right for phrase in line.phrases):
            if min(sides) >= LINES:
                runs.append((first, number))
            first, sides = number + 1, [0, 0]
        else:
            sides[0] += line.phrases[0].left < x
            sides[1] += line.phrases[-1].left > x
    if min(sides) >= LINES:
        runs.append((first, len(lines)))
    return [run for run in (_trim(lines, x, *run) for run in runs) if run[1] - run[0] >= LINES]


def _trim(lines: list[Line], x: float, first: int, last: int) -> tuple[int, int]:
    """Leaves off, at both ends, lines that have nothing beside them and stand apart."""
    close = [lines[n].top - lines[n - 1].bottom < END for n in range(first + 1, last)]
    left = [line.phrases[0].left < x for line in lines[first:last]]
    right = [line.phrases[-1].left > x for line in lines[first:last]]
    # What a line has beside it may stand a little higher or lower.
    both = [
        n
        for n in range(len(left))
        if (left[n] and right[n])
        or (n and close[n - 1] and left[n - 1] != left[n])
        or (n < len(close) and close[n] and left[n + 1] != left[n])
    ]
    if not both:
        return first, first
    start, end = both[0], both[-1] + 1
    while end < len(left) and close[end - 1]:
        end += 1
    return first + start, first + end


def _cut(lines: list[Line], x: float) -> tuple[list[Line], list[Line]]:
    """The lines' parts left and right of `x`."""
    left: list[Line] = []
    right: list[Line] = []
    for phrases, top, bottom in lines:
        parts = [p for p in phrases if p.left < x], [p for p in phrases if p.left >= x]
        for part, side in zip(parts, (left, right), strict=True):
            if part:
                side.append(Line(part, top, bottom))
    return left, right


def _width(column: list[Line]) -> float:
    """The width of a column, but for stray words beside it."""
    left = sorted(line.phrases[0].left for line in column)
    right = sorted(line.phrases[-1].right for line in column)
    stray = len(column) // 10
    return right[-1 - stray] - left[stray]


def _is_prose(column: list[Line]) -> bool:
    """Whether the lines are running text."""
    if len(column) < LINES:
        return False
    full = FILLED * _width(column)
    filled = sum(line.phrases[-1].right - line.phrases[0].left >= full for line in column)
    single = sum(len(line.phrases) == 1 for line in column)
    printed = sorted(sum(phrase.width for phrase in line.phrases) for line in column)
    return (
        single >= WHOLE * len(column)
        and filled >= FULL * len(column)
        and printed[len(printed) // 2] >= PRINT
    )
