"""Corridors: gaps between words that go on from line to line.

A gap of prose ends with its line. The gap between two columns of a table goes on through the lines
above and below, however narrow it is in one of them. What a gap's corridor measures elsewhere is
therefore evidence of what the gap is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# A corridor goes on while this much of it, in characters, is free of words.
NARROWEST = 0.35
# One very wide gap proves no more than a wide one, in characters.
WIDEST = 4.0
# A corridor that has crossed so many lines is not there by chance.
SURE = 2

# Left and right side, lines crossed, and the sum of the widths there.
Corridor = tuple[float, float, int, float]


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gaps of a line.

    Attributes:
        spans: where each begins and ends, from left to right; empty ones where words overlap.
        widths: their widths in characters, at most `WIDEST`.
        left, right: the sides of the line.
        unit: width of a character of the line.
    """

    spans: list[tuple[float, float]]
    widths: list[float]
    left: float
    right: float
    unit: float


def measure_corridors(lines: list[Gaps]) -> list[list[tuple[int, float]]]:
    """For each gap, how many other lines its corridor crosses, and the sum of its widths there."""
    down = _sweep(lines)
    up = _sweep(reversed(lines))[::-1]
    return [
        [(n + m, s + t) for (n, s), (m, t) in zip(above, below, strict=True)]
        for above, below in zip(down, up, strict=True)
    ]


def _sweep(lines: Iterable[Gaps]) -> list[list[tuple[int, float]]]:
    """The same, for the lines before each line only."""
    measured: list[list[tuple[int, float]]] = []
    corridors: list[Corridor] = []  # those open, from left to right
    for line in lines:
        entered, kept = _enter(line, corridors)
        lost = sum(
            c[2] >= SURE and c[0] > line.left and c[1] < line.right and number not in kept
            for number, c in enumerate(corridors)
        )
        if lost > sum(corridors[number][2] >= SURE for number in kept):
            # The line fills the corridors: it is no row of the table before it.
            corridors = []
            entered = [(start, end, 0, 0.0) for start, end in line.spans]
        measured.append([(count, total) for _, _, count, total in entered])
        # Corridors beside the line pass it by.
        beside = [c for c in corridors if c[0] < line.left]
        after = [c for c in corridors if c[1] > line.right]
        corridors = [(start, min(end, line.left), n, t) for start, end, n, t in beside]
        corridors += [
            (start, end, count + 1, total + width)
            for (start, end, count, total), width in zip(entered, line.widths, strict=True)
            if width >= NARROWEST
        ]
        corridors += [(max(start, line.right), end, n, t) for start, end, n, t in after]
    return measured


def _enter(line: Gaps, corridors: list[Corridor]) -> tuple[list[Corridor], set[int]]:
    """The corridor that leads into each gap, narrowed to it, and the numbers of all that go on."""
    narrowest = NARROWEST * line.unit
    entered: list[Corridor] = []
    kept: set[int] = set()
    first = 0
    for left, right in line.spans:
        while first < len(corridors) and corridors[first][1] <= left:
            first += 1
        best, widest = (left, right, 0, 0.0), narrowest
        for number in range(first, len(corridors)):
            start, end, count, total = corridors[number]
            if start >= right:
                break
            start, end = max(start, left), min(end, right)
            if end - start >= narrowest:
                kept.add(number)
                if end - start >= widest:
                    best, widest = (start, end, count, total), end - start
        entered.append(best)
    return entered, kept
