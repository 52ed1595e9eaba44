"""Pages that are drawn: words in their boxes, and what is known of them."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from turret_server.pipeline.documents.page import Page, Word, upright

Relation: TypeAlias = tuple[int, int, Literal["right", "below"]]
Align: TypeAlias = Literal["left", "centre", "right"]

# Advance widths in em, about Helvetica's.
_NARROW, _WIDE = frozenset("iljtfrI.,:;'|!()[]- "), frozenset("mwMW@%")
SPACE = 0.28
ASCENT, DESCENT = 0.75, 0.22  # of a font's box, in em


@dataclass(slots=True)
class Truth:
    """What a page says. Every word stands on its page once.

    Attributes:
        cells: the words of each cell of its table or form.
        relations: of neighbouring cells, by position in `cells`; `right` is the next as one reads.
        loose: cells whose neighbours do not matter: what stands right of a value in a form.
        order: its lines of text in reading order; an empty one where the order is anyone's.
        mirrored: it is read from right to left.
    """

    cells: list[tuple[str, ...]] = field(default_factory=list)
    relations: set[Relation] = field(default_factory=set)
    loose: set[int] = field(default_factory=set)
    order: list[tuple[str, ...]] = field(default_factory=list)
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """A page to lay out, and what it says.

    Attributes:
        name: of the page, unique.
        kind: what is on it, "table".
        variant: how it came to be words and boxes: "clean", "ocr" or "skew".
    """

    name: str
    kind: str
    variant: str
    page: Page
    truth: Truth


class Sheet:
    """An empty page to put text on, in pixels at 150 dpi.

    Args:
        rng: its source of chance.
        width: in pixels; A4's unless given.
        height: likewise.
    """

    def __init__(self, rng: random.Random, width: float = 1240.0, height: float = 1754.0) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.words: list[Word] = []
        self.truth = Truth()
        self._line = -1

    def put(
        self,
        text: str | Sequence[str],
        x: float,
        baseline: float,
        size: float,
        align: Align = "left",
        *,
        rtl: bool = False,
        space: float = SPACE,
    ) -> float:
        """Set one line of text at `x`: its left end, middle or right end. Returns its width."""
        words = text.split() if isinstance(text, str) else list(text)
        self._line += 1
        widths = [advance(word) * size for word in words]
        total = sum(widths) + space * size * (len(words) - 1)
        left = x - total * {"left": 0.0, "centre": 0.5, "right": 1.0}[align]
        at = left + total if rtl else left
        for word, width in zip(words, widths, strict=True):
            begin = at - width if rtl else at
            quad = upright(
                begin, baseline - ASCENT * size, begin + width, baseline + DESCENT * size
            )
            self.words.append(Word(word, quad, 1.0, self._line, 0))
            at += (-1 if rtl else 1) * (width + space * size)
        return total

    def page(self) -> Page:
        """The page so far; its words must differ from each other."""
        texts = [word.text for word in self.words]
        assert len(texts) == len(set(texts)), "a word stands on the page twice"
        return Page(self.words, self.width, self.height)


def advance(text: str) -> float:
    """Width of a text in em."""
    total = 0.0
    for char in text:
        if unicodedata.combining(char):
            continue
        if unicodedata.east_asian_width(char) in "WF":
            total += 1.0
        elif char in _NARROW:
            total += 0.3
        elif char in _WIDE:
            total += 0.85
        else:
            total += 0.67 if char.isupper() else 0.55
    return total
