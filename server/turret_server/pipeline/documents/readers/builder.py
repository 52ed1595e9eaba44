"""Collects the words of pages, and checks what every source can get wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import starmap
from math import hypot, inf

from turret_server.errors import BadRequest, PayloadTooLarge
from turret_server.pipeline.documents.page import Page, Quad, Word
from turret_server.pipeline.documents.readers.limits import ReadLimits
from turret_server.pipeline.documents.readers.quads import Box, turn_of_line, turned

# A word may lie off its page (skew, cropped scans, pages turned by 90 degrees): its coordinates
# may be this many times the longer side. What is further out is an error of units or worse.
_PAGES_AWAY = 4.0
_MAX_WHY = 300  # characters of an error, which may quote the content
_FURTHEST = 1e7  # where the page's size is not known
# C0 and C1 controls, surrogates, and marks that are neither seen nor take room.
_UNSEEN = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff\u200b]")


class PageBuilder:
    """The words of one page.

    Args:
        document: what the page belongs to.
        page: the page without words; a width or height of 0 stands for "not known".
    """

    __slots__ = ("_document", "_page", "_reach", "_room", "_words")

    def __init__(self, document: Builder, page: Page, room: int) -> None:
        self._document, self._page, self._room = document, page, room
        self._words = page.words
        known = page.width and page.height
        self._reach = _PAGES_AWAY * max(page.width, page.height) if known else _FURTHEST

    @property
    def width(self) -> float:
        """Of the page; 0 if it is not known."""
        return self._page.width

    @property
    def height(self) -> float:
        """Of the page; 0 if it is not known."""
        return self._page.height

    @property
    def num_words(self) -> int:
        """How many there are so far."""
        return len(self._words)

    def box(
        self,
        text: str,
        left: float,
        top: float,
        right: float,
        bottom: float,
        confidence: float | None = None,
        line: int = -1,
        block: int = -1,
    ) -> None:
        """Add a word in an axis-aligned box; left and right, or top and bottom, may be swapped.

        Raises:
            BadRequest: a coordinate is not finite or far off the page.
            PayloadTooLarge: there are too many words.
        """
        if left > right:
            left, right = right, left
        if top > bottom:
            top, bottom = bottom, top
        quad = (left, top, right, top, right, bottom, left, bottom)
        self.quad(text, quad, confidence, line, block)

    def quad(
        self,
        text: str,
        quad: Quad,
        confidence: float | None = None,
        line: int = -1,
        block: int = -1,
    ) -> None:
        """Add a word by its corners; nothing is added for white space.

        Raises:
            BadRequest: a coordinate is not finite or far off the page.
            PayloadTooLarge: there are too many words.
        """
        # Not less than the furthest coordinate, and NaN if one is NaN: what passes is all right.
        if not hypot(*quad) <= self._reach and not all(abs(x) <= self._reach for x in quad):
            raise self._far(text, quad)
        if not text.isprintable():
            text = _visible(text)
        text = text.strip()
        if not text:
            return
        if confidence is not None and not 0.0 <= confidence <= 1.0:
            confidence = _clamped(confidence)
        words = self._words
        if len(words) >= self._room:
            raise self._document.too_many("words", self._document.limits.max_words)
        words.append(Word(text, quad, confidence, line, block))

    def boxes(
        self,
        texts: Sequence[str],
        boxes: Sequence[Box],
        confidences: Sequence[float | None],
        lines: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None,
    ) -> None:
        """Add many words at once, as `box` does one by one; a third of its time if all are sound.

        Raises:
            BadRequest: as in `box`.
            PayloadTooLarge: as in `box`.
        """
        lines = lines if lines is not None else [-1] * len(texts)
        blocks = blocks if blocks is not None else [-1] * len(texts)
        together = "".join(texts)
        if (
            len(texts) <= self._room - len(self._words)
            and together.isprintable()
            and " " not in together
            and all(texts)
            and all(map(self._reach.__ge__, starmap(hypot, boxes)))
            and all(left <= right and top <= bottom for left, top, right, bottom in boxes)
            and all(sure is None or 0.0 <= sure <= 1.0 for sure in confidences)
        ):
            self._words += [
                Word(text, (x0, y0, x1, y0, x1, y1, x0, y1), sure, line, block)
                for text, (x0, y0, x1, y1), sure, line, block in zip(
                    texts, boxes, confidences, lines, blocks, strict=True
                )
            ]
            return
        rows = zip(texts, boxes, confidences, lines, blocks, strict=True)
        for text, box, sure, line, block in rows:
            self.box(text, *box, sure, line, block)

    def line(
        self,
        texts: Sequence[str],
        boxes: Sequence[Box],
        confidences: Sequence[float | None],
        line: int,
        block: int,
        turn: float = 0.0,
    ) -> None:
        """Add the words of one line, turned clockwise by so many degrees, or as their order says.

        Raises:
            BadRequest: as in `box`.
            PayloadTooLarge: as in `box`.
        """
        if turn := turn or turn_of_line(boxes):
            for text, box, confidence in zip(texts, boxes, confidences, strict=True):
                self.quad(text, turned(*box, turn), confidence, line, block)
        else:
            num = len(texts)
            self.boxes(texts, boxes, confidences, [line] * num, [block] * num)

    def points(
        self,
        text: str,
        points: Iterable[tuple[float, float]],
        confidence: float | None = None,
        line: int = -1,
        block: int = -1,
    ) -> None:
        """Add a word by its outline: four corners are its quad, other outlines their bounding box.

        Raises:
            BadRequest: there is no point, or one is not finite or far off the page.
            PayloadTooLarge: there are too many words.
        """
        flat: list[float] = []
        for point in points:
            flat += point
        self.outline(text, tuple(flat), confidence, line, block)

    def outline(
        self,
        text: str,
        flat: tuple[float, ...],
        confidence: float | None = None,
        line: int = -1,
        block: int = -1,
    ) -> None:
        """As `points`, of x and y in turn.

        Raises:
            BadRequest: as in `points`, or a y is missing.
            PayloadTooLarge: there are too many words.
        """
        if len(flat) == 8:
            self.quad(text, flat, confidence, line, block)
        elif len(flat) >= 4 and len(flat) % 2 == 0:
            xs, ys = flat[0::2], flat[1::2]
            if not all(-inf < value < inf for value in flat):
                raise self._far(text, flat)
            self.box(text, min(xs), min(ys), max(xs), max(ys), confidence, line, block)
        elif text.strip():
            raise self._document.wrong(
                f"{_short(text)} on page {self._page.number} has no box", "Give every word one."
            )

    def _far(self, text: str, numbers: Iterable[float]) -> BadRequest:
        page = self._page
        size = f"{page.width:g} x {page.height:g} {page.unit}" if page.width else "of unknown size"
        at = ", ".join(f"{number:g}" for number in numbers)
        return self._document.wrong(
            f"{_short(text)} lies at {at}, on page {page.number} ({size})",
            "Coordinates must be finite numbers on the page or near it, in the page's unit.",
        )

    def build(self) -> Page:
        """The page; where its size is not known, it reaches to its last word."""
        page = self._page
        if page.width and page.height:
            return page
        right = max((max(word.quad[0::2]) for word in page.words), default=0.0)
        bottom = max((max(word.quad[1::2]) for word in page.words), default=0.0)
        width = right if right > 0 else 1.0
        height = bottom if bottom > 0 else 1.0
        return Page(page.words, width, height, page.number, page.unit, page.angle)


class Builder:
    """The pages of one document.

    Args:
        title: of its format, for errors.
        limits: what it may hold.
    """

    def __init__(self, title: str, limits: ReadLimits) -> None:
        self.title, self.limits = title, limits
        self._pages: list[PageBuilder] = []
        self._numbers: set[int] = set()
        self._num_words = 0
        self._last: Page | None = None

    def page(
        self,
        width: float | None = 0.0,
        height: float | None = 0.0,
        *,
        number: int | None = None,
        unit: str = "px",
        angle: float | None = None,
    ) -> PageBuilder:
        """Begin the next page. A size or number that cannot be, or is taken, counts as not given.

        Raises:
            PayloadTooLarge: there are too many pages or words.
        """
        if len(self._pages) >= self.limits.max_pages:
            raise self.too_many("pages", self.limits.max_pages)
        if self._last is not None:
            self._num_words += len(self._last.words)
        sized = width is not None and height is not None and 0 < width < inf and 0 < height < inf
        page = Page(
            [],
            float(width) if sized and width else 0.0,
            float(height) if sized and height else 0.0,
            self._number(number),
            unit,
            float(angle) if angle is not None and -360 <= angle <= 360 else 0.0,
        )
        self._last = page
        builder = PageBuilder(self, page, self.limits.max_words - self._num_words)
        self._pages.append(builder)
        return builder

    def _number(self, given: int | None) -> int:
        """The number of the next page; no two pages of a document have the same."""
        number = given if given is not None and 0 < given < 1 << 31 else len(self._pages) + 1
        if number in self._numbers:
            number = max(self._numbers) + 1
        self._numbers.add(number)
        return number

    def build(self) -> list[Page]:
        """All pages, in the order in which they were begun."""
        return [page.build() for page in self._pages]

    def wrong(self, why: str, fix: str = "Check how the file was made.") -> BadRequest:
        """The error for content that is not as the format says."""
        why = why if len(why) <= _MAX_WHY else why[:_MAX_WHY] + "…"
        return BadRequest(f"the OCR result cannot be read as {self.title}", why, fix)

    def same_length(self, parts: Mapping[str, Sized]) -> None:
        """Refuse parallel lists that are not.

        Raises:
            BadRequest: their lengths differ.
        """
        if len({len(part) for part in parts.values()}) > 1:
            lengths = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
            raise self.wrong(f"it has {lengths}", "Every word needs one of each.")

    def too_many(self, what: str, limit: int) -> PayloadTooLarge:
        """The error for a document over a limit."""
        return PayloadTooLarge(
            f"the document has too many {what}",
            f"{limit} are allowed",
            "Send fewer pages at once, or raise the limit in the server's settings.",
        )


def _clamped(confidence: float) -> float | None:
    if confidence != confidence:
        return None
    return min(max(confidence, 0.0), 1.0)


def _visible(text: str) -> str:
    """Without control characters and surrogates; white space within becomes one space."""
    return " ".join(_UNSEEN.sub("", text).split())


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 40 else text[:40] + "…")
