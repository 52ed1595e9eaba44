"""The word of a page that a misspelt word stands for."""

from __future__ import annotations

from collections.abc import Iterable

_MIN_CHARS = 4
_TWO_EDITS_CHARS = 8  # from this length on two letters may differ, below one
_MAX_CHARS = 64


class Speller:
    """Finds words that differ in a letter or two; words with digits never stand for each other.

    With k edits, one of k + 1 pieces of a word is whole in the other (Wu and Manber, 1992); so
    only words that hold a piece are compared.

    Args:
        words: of the pages.
        max_comparisons: work for all look-ups together, so that hostile pages cost no more.
    """

    def __init__(self, words: Iterable[str], max_comparisons: int = 2000):
        fit = [word for word in words if _MIN_CHARS - 2 < len(word) <= _MAX_CHARS + 2]
        self._text = "\n" + "\n".join([word for word in fit if word.isalpha()]) + "\n"
        self._left = max_comparisons

    def nearest(self, word: str) -> tuple[str, int] | None:
        """Return the nearest word and the number of edits, the first of equals; None if none is."""
        if not _MIN_CHARS <= len(word) <= _MAX_CHARS or not word.isalpha():
            return None
        best: tuple[str, int] | None = None
        limit = 2 if len(word) >= _TWO_EDITS_CHARS else 1
        size = len(word) // (limit + 1)
        for piece in range(limit + 1):
            start = piece * size
            end = start + size if piece < limit else len(word)
            at = self._text.find(word[start:end])
            while at >= 0 and self._left > 0:
                self._left -= 1
                before, after = self._text.rfind("\n", 0, at), self._text.find("\n", at)
                other = self._text[before + 1 : after]
                distance = _distance(word, other, limit)
                if distance is not None and (best is None or distance < best[1]):
                    best, limit = (other, distance), distance
                at = self._text.find(word[start:end], after)
        return best


def _distance(first: str, second: str, limit: int) -> int | None:
    """Return the edits between words; None if they are more than `limit`."""
    if abs(len(first) - len(second)) > limit:
        return None
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, 1):
        diagonal, row[0] = row[0], number
        for at, other in enumerate(second, 1):
            substituted = diagonal + (letter != other)
            diagonal = row[at]
            row[at] = min(substituted, row[at] + 1, row[at - 1] + 1)
        if min(row) > limit:
            return None
    return row[-1] if row[-1] <= limit else None
