"""Runs that go on in the line below, past the cells beside theirs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from turret_server.pipeline.documents.layout.text import PageText

# The lines of cells beside it may stand between those of a cell, and so may a blank one.
_MAX_ROWS = 3
_MAX_WORDS = 64  # of a line, that are looked at


class Grid:
    """A page's text as rows and columns: there a page is upright, whatever its boxes are."""

    def __init__(self, text: PageText):
        self._spans = text.spans
        ends = accumulate(len(line) + 1 for line in text.text.split("\n"))
        self._starts = [0, *ends]

    def goes_on(self, above: Sequence[int], below: Sequence[int]) -> bool:
        """Whether the words `below` may follow the words `above` in one cell of several lines."""
        row, left, right = self._row(above, above[-1])
        other_row, other_left, other_right = self._row(below, below[0])
        return 0 < other_row - row <= _MAX_ROWS and left < other_right and other_left < right

    def _row(self, words: Sequence[int], at: int) -> tuple[int, int, int]:
        """Return the row of one of the words, and the columns of those that are in it."""
        row = self._row_of(at)
        near = words[-_MAX_WORDS:] if words[-1] == at else words[:_MAX_WORDS]
        spans = [self._spans[word] for word in near if self._row_of(word) == row]
        start = self._starts[row]
        return row, min(span[0] for span in spans) - start, max(span[1] for span in spans) - start

    def _row_of(self, word: int) -> int:
        return bisect_right(self._starts, self._spans[word][0]) - 1
