"""Corridors: gaps between words that go on from line to line.

A gap of prose ends with its line. The gap between two columns of a table goes on through the lines
above and below, however narrow it is in one of them. What a gap's corridor measures elsewhere is
therefore evidence of what the gap is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

# A corridor goes on while this much of it, in characters, is free of words.
NARROWEST = 0.35
# One very wide gap proves no more than a wide one, in characters.
WIDEST = 4.0
# A gap this far, in characters, from both sides of a corridor lies in an empty cell by chance.
LONE = 3.0
# A corridor that has crossed so many lines is not there by chance.
SURE = 2
# It ends at white space of so many heights of a line, which is so many times what lines of the page
# usually stand apart: what is below is another table.
FAR, UNUSUAL = 3.0, 2.0
# A corridor that only passed lines by for so long is over.
FORGOTTEN = 6

# Left and right side, lines crossed, the sum of the widths there, and the last line crossed.
Corridor = tuple[float, float, int, float, int]


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gaps of a line.

    Attributes:
        spans: where each begins and ends, from left to right; empty ones where words overlap.
        widths: their widths in characters, at most `WIDEST`.
        left, right: the sides of the line.
        unit: width of a character of the line.
        top, bottom: its other sides.
    """

    spans: list[tuple[float, float]]
    widths: list[float]
    left: float
    right: float
    unit: float
    top: float
    bottom: float


def measure_corridors(lines: list[Gaps]) -> list[list[tuple[int, float]]]:
    """For each gap, how many other lines its corridor crosses, and the sum of its widths there."""
    measured: list[list[tuple[int, float]]] = []
    for part in _parts(lines):
        down = _sweep(part)
        up = _sweep(reversed(part))[::-1]
        measured += [
            [(n + m, s + t) for (n, s), (m, t) in zip(above, below, strict=True)]
            for above, below in zip(down, up, strict=True)
        ]
    return measured


def _parts(lines: list[Gaps]) -> Iterator[list[Gaps]]:
    """The lines between any two far apart."""
    spaces = [below.top - above.bottom for above, below in pairwise(lines)]
    far = max(FAR, UNUSUAL * sorted(spaces)[len(spaces) // 2]) if spaces else FAR
    start = 0
    for end, space in enumerate(spaces, start=1):
        if space > far:
            yield lines[start:end]
            start = end
    yield lines[start:]


def _sweep(lines: Iterable[Gaps]) -> list[list[tuple[int, float]]]:
    """The same, for the lines before each line only."""
    measured: list[list[tuple[int, float]]] = []
    corridors: list[Corridor] = []  # those open, from left to right
    for number, line in enumerate(lines):
        entered, kept = _enter(line, corridors)
        sure = {
            place
            for place, c in enumerate(corridors)
            if c[2] >= SURE and c[0] > line.left and c[1] < line.right
        }
        if 2 * len(sure & kept) < len(sure):
            # The line fills the corridors: it is no row of the table before it.
            corridors = []
            entered = [(start, end, 0, 0.0, 0) for start, end in line.spans]
        measured.append([corridor[2:4] for corridor in entered])
        # Corridors beside the line pass it by.
        going = [c for c in corridors if number - c[4] <= FORGOTTEN]
        corridors = [(c[0], min(c[1], line.left), *c[2:]) for c in going if c[0] < line.left]
        corridors += [
            (start, end, count + 1, total + width, number)
            for (start, end, count, total, _), width in zip(entered, line.widths, strict=True)
            if width >= NARROWEST
        ]
        corridors += [(max(c[0], line.right), *c[1:]) for c in going if c[1] > line.right]
    return measured


def _enter(line: Gaps, corridors: list[Corridor]) -> tuple[list[Corridor], set[int]]:
    """The corridor that leads into each gap, narrowed to it, and the numbers of those kept free."""
    narrowest = NARROWEST * line.unit
    entered: list[Corridor] = []
    gaps_within = [0] * len(corridors)
    into: dict[int, int] = {}  # by corridor, the gap it leads into: one, the widest
    first = 0
    for gap, (left, right) in enumerate(line.spans):
        while first < len(corridors) and corridors[first][1] <= left:
            first += 1
        best, widest, chosen = (left, right, 0, 0.0, 0), narrowest, -1
        for number in range(first, len(corridors)):
            start, end, count, total, last = corridors[number]
            if start >= right:
                break
            lone = min(left - start, end - right) > LONE * line.unit
            start, end = max(start, left), min(end, right)
            if end - start >= narrowest:
                gaps_within[number] += 1
                if end - start >= widest and not lone:
                    best, widest, chosen = (start, end, count, total, last), end - start, number
        if chosen in into and line.widths[into[chosen]] >= line.widths[gap]:
            best = (left, right, 0, 0.0, 0)
        elif chosen >= 0:
            if chosen in into:
                other = into[chosen]
                entered[other] = (*line.spans[other], 0, 0.0, 0)
            into[chosen] = gap
        entered.append(best)
    # With two gaps within it, a word stands in the corridor.
    return entered, {number for number, gaps in enumerate(gaps_within) if gaps == 1}
