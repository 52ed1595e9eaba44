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
        # Corridors beside the line pass it by.
        opened = [(c[0], min(c[1], line.left), *c[2:]) for c in corridors if c[0] < line.left]
        first = 0
        for left, right in line.spans:
            width = min(max((right - left) / line.unit, 0.0), WIDEST)
            while first < len(corridors) and corridors[first][1] <= left:
                first += 1
            best = (left, right, 0, 0.0)
            for corridor in corridors[first:]:
                if corridor[0] >= right:
                    break
                low, high = max(corridor[0], left), min(corridor[1], right)
                if high - low >= narrowest and corridor[2] > best[2]:
                    best = (low, high, corridor[2], corridor[3])
            row.append((best[2], best[3]))
            if right - left >= narrowest:
                opened.append((best[0], best[1], best[2] + 1, best[3] + width))
        opened += [(max(c[0], line.right), *c[1:]) for c in corridors if c[1] > line.right]
        corridors = opened
        measured.append(row)
    return measured
