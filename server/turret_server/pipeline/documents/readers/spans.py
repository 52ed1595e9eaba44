"""Which part of a text a piece of it belongs to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence


class Parts:
    """Parts of a text, such as its lines.

    Args:
        parts: of each the ranges it consists of: begin, and end (exclusive).
    """

    def __init__(self, parts: Iterable[Sequence[tuple[int, int]]]) -> None:
        ranges = sorted((begin, end, i) for i, part in enumerate(parts) for begin, end in part)
        self._begins = [begin for begin, _, _ in ranges]
        self._ends = [end for _, end, _ in ranges]
        self._owners = [owner for _, _, owner in ranges]

    def at(self, offset: int) -> int:
        """The part that holds the letter at `offset`, by its position in `parts`; -1 if none."""
        i = bisect_right(self._begins, offset) - 1
        return self._owners[i] if i >= 0 and offset < self._ends[i] else -1
