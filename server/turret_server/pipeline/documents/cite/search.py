"""Runs of tokens that an answer and the pages have in common.

Each token of the answer becomes one character, so that a run is a substring.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from turret_server.pipeline.documents.cite.readings import Reading

MAX_TOKENS = 4096
MAX_OCCURRENCES = 512  # of a run, that are told apart

_END = "\x00"  # of a reading
_ELSEWHERE = "\x01"  # a token that is not in the answer
_FIRST_CODE = 2


class Search:
    """The pages' readings, to be searched for runs of an answer's tokens.

    Args:
        pages: each with its readings.
        keys: of the answer's tokens; at most `MAX_TOKENS`.
    """

    def __init__(self, pages: Sequence[Sequence[Reading]], keys: Iterable[str]):
        self._codes = {
            key: chr(_FIRST_CODE + number) for number, key in enumerate(dict.fromkeys(keys))
        }
        self._readings = [(page, each) for page, found in enumerate(pages) for each in found]
        self._starts: list[int] = []
        encoded: list[str] = []
        start = 0
        for _, reading in self._readings:
            self._starts.append(start)
            encoded.append("".join([self._codes.get(key, _ELSEWHERE) for key in reading.keys]))
            start += len(encoded[-1]) + 1
        self._text = _END.join(encoded)
        self._array = _codes(self._text)

    def encode(self, keys: Iterable[str]) -> str:
        """Return the answer's tokens as the text to look for."""
        return "".join([self._codes[key] for key in keys])

    def longest(self, needle: str) -> list[int]:
        """Return for each token of the answer how many, from it on, follow each other on a page.

        Costs a few operations on arrays for each token, whatever the texts are.
        """
        text = self._array  # [T]
        same = np.empty(len(text), dtype=bool)
        # Tokens from each place of the text on that equal those of the answer from `at` on.
        run, before = np.zeros((2, len(text) + 1), dtype=np.uint16)
        lengths: list[int] = []
        for code in _codes(needle)[::-1]:
            run, before = before, run
            np.equal(text, code, out=same)
            np.add(before[1:], 1, out=run[:-1])
            run[:-1] *= same
            lengths.append(int(run.max()))
        return lengths[::-1]

    def occurrences(self, run: str) -> dict[tuple[int, int], int]:
        """Return where a run stands, by page and first word; at most `MAX_OCCURRENCES`."""
        found: dict[tuple[int, int], int] = {}
        at = self._text.find(run)
        while at >= 0 and len(found) < MAX_OCCURRENCES:
            page, reading, token = self._locate(at)
            found.setdefault((page, reading.words[token][0]), at)
            at = self._text.find(run, at + 1)
        return found

    def words(self, at: int, length: int) -> tuple[int, ...]:
        """Return the words of the run of `length` tokens that stands at `at`."""
        _, reading, token = self._locate(at)
        found = list(reading.words[token])
        for each in range(token + 1, token + length):
            found += [*reading.after.get(each - 1, ()), *reading.words[each]]
        return tuple(dict.fromkeys(found))

    def _locate(self, at: int) -> tuple[int, Reading, int]:
        """Return the page, its reading and the token's number there."""
        number = bisect_right(self._starts, at) - 1
        page, reading = self._readings[number]
        return page, reading, at - self._starts[number]


def _codes(text: str) -> NDArray[np.uint16]:
    return np.frombuffer(text.encode("utf-16-le"), dtype="<u2")
