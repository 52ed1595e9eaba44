"""The neutral page model: what every reader returns and the layout takes."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

# x, y of four corners: top left, top right, bottom right, bottom left *as the text is read*, so
# that the first edge runs in the direction of reading, also where the text is rotated.
Quad: TypeAlias = tuple[float, float, float, float, float, float, float, float]


class Word(msgspec.Struct, frozen=True, gc=False):
    """A piece of text and where it stands; a word, or a whole line where a source has no words.

    Attributes:
        text: without surrounding white space, never empty.
        quad: its corners, in the page's unit; x grows to the right, y downwards.
        confidence: 0 to 1, or None where the source gives none.
        line: number of its line in the source, or -1. A hint: layout does not depend on it.
        block: number of its block or paragraph in the source, or -1. A hint as well.
    """

    text: str
    quad: Quad
    confidence: float | None = None
    line: int = -1
    block: int = -1

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        xs, ys = self.quad[0::2], self.quad[1::2]
        return min(xs), min(ys), max(xs), max(ys)


class Page(msgspec.Struct, frozen=True):
    """One page.

    Attributes:
        words: in the order of the source.
        width: of the page, in `unit`.
        height: of the page, in `unit`.
        number: from 1, within its document.
        unit: "px", "pt", "inch", "mm" or "relative" (0 to 1). Only citations show it: layout needs
            proportions alone.
        angle: clockwise degrees by which the source says the page is turned; 0 if it says nothing.
    """

    words: list[Word]
    width: float
    height: float
    number: int = 1
    unit: str = "px"
    angle: float = 0.0


def upright(left: float, top: float, right: float, bottom: float) -> Quad:
    """The quad of an axis-aligned box whose text runs from left to right."""
    return left, top, right, top, right, bottom, left, bottom


def mark(ticked: bool) -> str:
    """What stands for a check box or a radio button of a form, as a word of its page."""
    return "☑" if ticked else "☐"
