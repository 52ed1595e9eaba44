"""hOCR, the HTML of Tesseract, OCRopus and Kraken: well-formed XHTML, or HTML of any make."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.readers.builder import Builder, PageBuilder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse
from turret_server.pipeline.documents.readers.markup import (
    parse_html,
    parse_xml,
    refuse_entities,
)
from turret_server.pipeline.documents.readers.quads import Box, turned

_LINES = frozenset(["ocr_line", "ocrx_line", "ocr_header", "ocr_caption", "ocr_textfloat"])
_MAX_LEVELS = 8  # of elements within a word
_BLOCKS = frozenset(["ocr_carea", "ocrx_block", "ocr_par"])


def _fits(content: Glimpse) -> bool:
    return content.root == "html" or "ocr_page" in content.head or "<html" in content.head


def _collect(data: bytes, document: Builder) -> None:
    refuse_entities(data, document)
    try:
        root = parse_xml(data, document)
    except BadRequest:
        lowered = data.lower()
        if b"<html" in lowered and b"</html" not in lowered:
            raise  # it was cut off
        root = parse_html(data, document)
    reader = _Reader(document)
    take = reader.words.append
    for element in root.iter():
        names = element.get("class")
        if names == "ocrx_word":
            take(element)
        elif names is not None:
            reader.other(element, names)
    reader.finish()


class _Reader:
    """Takes elements in the order of the document; adds words when a page of them is complete.

    Attributes:
        words: of the page so far; whoever finds one appends it.
    """

    def __init__(self, document: Builder) -> None:
        self.words: list[Element] = []
        self._document = document
        self._page: PageBuilder | None = None
        self._line = self._block = -1
        self._angle = 0.0
        self._open: Element | None = None  # the line that words belong to now
        self._lines: list[int] = []  # of `words`, up to the last line's
        self._blocks: list[int] = []

    def other(self, element: Element, names: str) -> None:
        """Take an element of some other class, or of several."""
        kind = names
        if " " in names:
            kind = next((name for name in names.split() if name.startswith("ocr")), "")
        if kind == "ocrx_word":
            self.words.append(element)
        elif kind in _LINES:
            self._close()
            self._line += 1
            self._open = element
            angle = -_after("textangle", element)  # hOCR counts counterclockwise
            if angle != self._angle:
                self._flush()
            self._angle = angle
        elif kind in _BLOCKS:
            self._close()
            self._block += 1
        elif kind == "ocr_page":
            self._close()
            self._flush()
            size = _after("bbox", element, 3), _after("bbox", element, 4)
            self._page = self._document.page(*size)

    def finish(self) -> None:
        """No more elements come."""
        self._close()
        self._flush()
        if self._page is None:
            raise self._document.wrong(
                "no element of it is of the class 'ocr_page'", "Send hOCR as its tool wrote it."
            )

    def _close(self) -> None:
        """The line is complete; it stands for itself if it has no words."""
        if self._open is not None and len(self.words) == len(self._lines):
            self.words.append(self._open)
        num = len(self.words) - len(self._lines)
        self._lines += [self._line] * num
        self._blocks += [self._block] * num
        self._open = None

    def _flush(self) -> None:
        if not self.words:
            return
        texts = [_text(word) if len(word) else word.text or "" for word in self.words]
        titles = [word.get("title", "") for word in self.words]
        boxes, confidences = _tesseract(titles) or _any_maker(texts, titles, self._document)
        page = self._page = self._page or self._document.page()
        if self._angle:
            for i, box in enumerate(boxes):
                quad = turned(*box, self._angle)
                page.quad(texts[i], quad, confidences[i], self._lines[i], self._blocks[i])
        else:
            page.boxes(texts, boxes, confidences, self._lines, self._blocks)
        for column in (self.words, self._lines, self._blocks):
            column.clear()


def _text(element: Element, levels: int = _MAX_LEVELS) -> str:
    """All text within, but not deeper than words are marked up: of words in words, all the same."""
    parts = [element.text or ""]
    for child in element:
        parts += (_text(child, levels - 1) if levels else "", child.tail or "")
    return "".join(parts)


def _tesseract(titles: list[str]) -> tuple[list[Box], list[float | None]] | None:
    """Boxes and confidences, if all titles are like "bbox 36 92 580 122; x_wconf 95".

    All at once, so that reading a page does not take several times what parsing its XML takes.
    """
    num = len(titles)
    parts = " ".join(titles).replace(";", " ").split()
    if parts[0::7] != ["bbox"] * num or parts[5::7] != ["x_wconf"] * num:
        return None
    if len(parts) != 7 * num:
        return None
    try:
        sides = [list(map(float, parts[i::7])) for i in (1, 2, 3, 4)]
        return list(zip(*sides, strict=True)), [float(part) / 100 for part in parts[6::7]]
    except ValueError:
        return None


def _any_maker(
    texts: list[str], titles: list[str], document: Builder
) -> tuple[list[Box], list[float | None]]:
    boxes: list[Box] = []
    confidences: list[float | None] = []
    for text, title in zip(texts, titles, strict=True):
        parts = title.replace(";", " ").split()
        try:
            at = parts.index("bbox") + 1 if text.strip() else 0
            left, top, right, bottom = map(float, parts[at : at + 4] if at else "0000")
            boxes.append((left, top, right, bottom))
            sure = float(parts[parts.index("x_wconf") + 1]) / 100 if "x_wconf" in parts else None
        except (ValueError, IndexError):
            raise document.wrong(f"{text.strip()[:40]!r} has no bbox in its title") from None
        confidences.append(sure)
    return boxes, confidences


def _after(name: str, element: Element, offset: int = 1) -> float:
    """The number that follows a property's name in the title; 0 where there is none."""
    title = element.get("title", "")
    if name not in title:
        return 0.0
    parts = title.replace(";", " ").split()
    try:
        return float(parts[parts.index(name) + offset])
    except (ValueError, IndexError):
        return 0.0


FORMAT = Format("hocr", "hOCR", _fits, _collect)
