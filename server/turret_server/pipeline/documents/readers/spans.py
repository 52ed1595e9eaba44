"""Which part of a text a piece of it belongs to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


def owners(starts: Sequence[int], parts: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    """The part that each piece of a text begins in.

    Args:
        starts: offsets of the pieces; -1 where one has none.
        parts: of each, such as a line, the ranges it consists of: begin, and end (exclusive).

    Returns:
        For each piece the position of its part in `parts`, or -1.
    """
    ranges = sorted((begin, end, i) for i, part in enumerate(parts) for begin, end in part)
    begins = [begin for begin, _, _ in ranges]
    found = []
    for start in starts:
        at = bisect_right(begins, start) - 1
        found.append(ranges[at][2] if at >= 0 and start < ranges[at][1] else -1)
    return found
