"""First-fit allocation of consecutive rows."""

from __future__ import annotations


class RowAllocator:
    """Hands out ranges of `capacity` rows, lowest first, and merges what comes back.

    Low rows first, because rows that were never used cost no memory.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.free = capacity
        self._ranges: list[tuple[int, int]] = [(0, capacity)]  # (start, length), ascending

    @property
    def used(self) -> int:
        """Rows that are handed out."""
        return self.capacity - self.free

    def allocate(self, count: int) -> int | None:
        """First row of a free range of `count` rows, or None where there is none."""
        for i, (start, length) in enumerate(self._ranges):
            if length >= count:
                rest = (start + count, length - count)
                self._ranges[i : i + 1] = [rest] if rest[1] else []
                self.free -= count
                return start
        return None

    def release(self, start: int, count: int) -> None:
        """Give a range back."""
        self.free += count
        merged: list[tuple[int, int]] = []
        for begin, length in sorted([*self._ranges, (start, count)]):
            if merged and sum(merged[-1]) == begin:
                merged[-1] = merged[-1][0], merged[-1][1] + length
            else:
                merged.append((begin, length))
        self._ranges = merged
