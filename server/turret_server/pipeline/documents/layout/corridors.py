"""Corridors: gaps between words that continue from line to line.

A gap of prose ends with its line. The gap between two columns of a table goes on through the lines
above and below, however narrow it is in one of them. What a gap's corridor measures elsewhere is
therefore evidence of what the gap is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# A corridor goes on while this much of it (in characters) is free of words.
NARROWEST = 0.35
# One very wide gap proves no more than a wide one.
WIDEST = 4.0


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gaps of a line.

    Attributes:
        spans: where each begins and ends, from left to right; may be empty where words overlap.
        left, right: the sides of the line.
        unit: width of a character.
    """

    spans: list[tuple[float, float]]
    left: float
    right: float
    unit: float


def measure_corridors(lines: list[Gaps]) -> list[list[tuple[int, float]]]:
    """For each gap, how many other lines its corridor crosses, and the sum of its widths there.

    Widths count in characters, at most `WIDEST` each.
    """
    down = _sweep(lines)
    up = _sweep(reversed(lines))[::-1]
    return [
        [(n + m, s + t) for (n, s), (m, t) in zip(above, below, strict=True)]
        for above, below in zip(down, up, strict=True)
    ]


def _sweep(lines: Iterable[Gaps]) -> list[list[tuple[int, float]]]:
    """The same, for the lines before each line only."""
    measured: list[list[tuple[int, float]]] = []
    # Corridors open so far, from left to right: left, right, lines crossed, sum of widths.
    corridors: list[tuple[float, float, int, float]] = []
    for line in lines:
        narrowest = NARROWEST * line.unit
        row: list[tuple[int, float]] = []
        gaps: list[tuple[float, float]] = []
        kept: set[int] = set()
        first = 0
        for left, right in line.spans:
            while first < len(corridors) and corridors[first][1] <= left:
                first += 1
            best, free, widest = (left, right, 0, 0.0), (left, right), narrowest
            for number in range(first, len(corridors)):
                corridor = corridors[number]
                if corridor[0] >= right:
                    break
                low, high = max(corridor[0], left), min(corridor[1], right)
                if high - low >= narrowest:
                    kept.add(number)
                if high - low >= widest:
                    best, free, widest = corridor, (low, high), high - low
            row.append(best[2:])
            gaps.append(free)
        within = {
            number
            for number, c in enumerate(corridors)
            if c[2] >= 2 and c[0] > line.left and c[1] < line.right
        }
        if len(within - kept) > len(within & kept):
            # The line fills the corridors: it is no row of the table before it.
            row = [(0, 0.0)] * len(row)
            corridors = []
        # Corridors beside the line pass it by.
        opened = [(c[0], min(c[1], line.left), *c[2:]) for c in corridors if c[0] < line.left]
        for (left, right), free, (count, total) in zip(line.spans, gaps, row, strict=True):
            if right - left >= narrowest:
                width = min((right - left) / line.unit, WIDEST)
                opened.append((*free, count + 1, total + width))
        opened += [(max(c[0], line.right), *c[1:]) for c in corridors if c[1] > line.right]
        corridors = opened
        measured.append(row)
    return measured
