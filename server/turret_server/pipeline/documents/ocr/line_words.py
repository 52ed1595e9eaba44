"""From a recognised line to its words and where they stand in the picture of the line.

The recogniser gives characters and the column in which it was surest of each, which lies near the
middle of the character. Where words begin and end is then seen in the ink.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_JUMP = 3.0  # times the usual distance of characters: another word, though no space was read
_REACH = 1.5  # times it: as far as a character extends from its middle
_CONTRAST = 0.35  # of the range of grey, from the paper on: ink
_LEAST_INK_PX = 2  # in a row or column; one may be noise


@dataclass(frozen=True, slots=True)
class LineWord:
    """A word; `left` and `right` in pixels of the line's picture."""

    text: str
    left: float
    right: float
    confidence: float


def split(
    text: str, middles: Sequence[float], confidences: Sequence[float], ink: NDArray[np.bool_]
) -> list[LineWord]:
    """Return the words of a line.

    Args:
        text: of the line, with its spaces.
        middles: in pixels, of its characters that are no spaces.
        confidences: of all its characters.
        ink: [width], whether there is any in a column of pixels.
    """
    words = _group(text, middles, confidences)
    if not words:
        return []
    width = len(ink)
    columns = np.flatnonzero(ink)
    reach = _REACH * _pitch(middles, width / len(text))
    begin, end = (float(columns[0]), float(columns[-1] + 1)) if len(columns) else (0.0, width)
    lefts = [min(max(begin, words[0].left - reach, 0.0), words[0].left)]
    rights = []
    for word, following in pairwise(words):
        right, left = _gap(ink, word.right, following.left)
        rights.append(right)
        lefts.append(left)
    rights.append(max(min(end, words[-1].right + reach, width), words[-1].right))
    return [
        LineWord(word.text, left, right, word.confidence)
        for word, left, right in zip(words, lefts, rights, strict=True)
    ]


def ink_of(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell ink from paper, whichever is darker.

    Args:
        grey: [height, width].
    """
    paper = float(np.median(grey))
    distance = np.abs(grey.astype(np.float32) - paper)
    return distance > _CONTRAST * max(float(np.percentile(distance, 99)), 16.0)


def inked(ink: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Whether the columns (axis 0) or rows (axis 1) have ink."""
    return np.count_nonzero(ink, axis=axis) >= _LEAST_INK_PX


def _group(text: str, middles: Sequence[float], confidences: Sequence[float]) -> list[LineWord]:
    """Words from the middle of their first to the middle of their last character."""
    jump = _JUMP * _pitch(middles, 0.0)
    words: list[LineWord] = []
    letters: list[str] = []
    sure: list[float] = []
    first = last = 0.0
    at = iter(middles)

    def flush() -> None:
        if letters:
            words.append(LineWord("".join(letters), first, last, sum(sure) / len(sure)))
            letters.clear()
            sure.clear()

    for letter, confidence in zip(text, confidences, strict=True):
        if letter.isspace():
            flush()
            continue
        middle = next(at)
        if letters and jump and middle - last > jump:
            flush()
        if not letters:
            first = middle
        letters.append(letter)
        sure.append(confidence)
        last = middle
    flush()
    return words


def _pitch(middles: Sequence[float], otherwise: float) -> float:
    """The usual distance of characters."""
    return float(np.median(np.diff(middles))) if len(middles) > 1 else otherwise


def _gap(ink: NDArray[np.bool_], start: float, stop: float) -> tuple[float, float]:
    """The longest stretch without ink between two characters, or a point half way."""
    first = int(start)
    between = ink[first : int(stop) + 1]
    edges = np.flatnonzero(np.diff(np.concatenate(([True], between, [True])).astype(np.int8)))
    starts, stops = edges[0::2], edges[1::2]
    if not len(starts):
        middle = (start + stop) / 2
        return middle, middle
    longest = int(np.argmax(stops - starts))
    return first + float(starts[longest]), first + float(stops[longest])
