"""The words of one reading frame as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from wcwidth import wcswidth, wcwidth

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Boxes:
    """N words, upright: text runs along x, lines follow each other along y.

    Attributes:
        index: [N] each word's number in the page.
        text: [N] each word's text, on one line.
        width: [N] columns the text takes on a terminal.
        left, top, right, bottom: [N] sides, left <= right and top <= bottom.
        mirrored: the page reads from right to left, and x has been mirrored.
    """

    index: list[int]
    text: list[str]
    width: Ints
    left: Floats
    top: Floats
    right: Floats
    bottom: Floats
    mirrored: bool = False

    def __len__(self) -> int:
        return len(self.text)


def display_width(text: str) -> int:
    """Columns `text` takes on a terminal: 2 for a wide character, 0 for a combining mark."""
    if text.isascii():
        return len(text)
    width = wcswidth(text)
    return width if width >= 0 else sum(max(wcwidth(char), 0) for char in text)


def char_width(boxes: Boxes) -> float:
    """The median word's width per column of print; never 0."""
    return max(float(np.median((boxes.right - boxes.left) / np.maximum(boxes.width, 1))), 1e-6)
