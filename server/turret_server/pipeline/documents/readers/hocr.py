"""hOCR, the HTML of Tesseract, OCRopus and Kraken: well-formed XHTML, or HTML of any make."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.readers.builder import Builder, PageBuilder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse
from turret_server.pipeline.documents.readers.markup import parse_html, parse_xml
from turret_server.pipeline.documents.readers.quads import turned

_LINES = frozenset(["ocr_line", "ocrx_line", "ocr_header", "ocr_caption", "ocr_textfloat"])
_BLOCKS = frozenset(["ocr_carea", "ocrx_block", "ocr_par"])


def _fits(content: Glimpse) -> bool:
    return content.root == "html" or "ocr_page" in content.head or "<html" in content.head


def _collect(data: bytes, document: Builder) -> None:
    try:
        root = parse_xml(data, document)
    except BadRequest:
        lowered = data.lower()
        if b"<!entity" in lowered or (b"<html" in lowered and b"</html" not in lowered):
            raise  # an attack, or cut off
        root = parse_html(data, document)
    reader = _Reader(document)
    for element in root.iter():
        names = element.get("class")
        if names is not None and "ocr" in names:
            reader.add(element, names)
    reader.finish()


class _Reader:
    """Takes elements in the order of the document."""

    def __init__(self, document: Builder) -> None:
        self._document = document
        self._page: PageBuilder | None = None
        self._line = self._block = -1
        self._angle = 0.0
        self._wordless: Element | None = None  # a line none of whose words has come yet

    def add(self, element: Element, names: str) -> None:
        """An element and its classes."""
        kind = names if names == "ocrx_word" else _kind(names)
        if kind == "ocrx_word":
            self._wordless = None
            self._add(element)
        elif kind in _LINES:
            self._flush()
            self._line += 1
            self._wordless = element
            self._angle = self._turn(element)
        elif kind in _BLOCKS:
            self._flush()
            self._block += 1
        elif kind == "ocr_page":
            self._flush()
            self._page = self._document.page(*self._size(element))

    def finish(self) -> None:
        """No more elements come."""
        self._flush()
        if self._page is None:
            raise self._document.wrong(
                "no element of it is of the class 'ocr_page'", "Send hOCR as its tool wrote it."
            )

    def _flush(self) -> None:
        if self._wordless is not None:
            self._add(self._wordless)
            self._wordless = None

    def _turn(self, line: Element) -> float:
        """Clockwise degrees; hOCR counts counterclockwise."""
        parts = _parts(line)
        try:
            return -_after("textangle", parts) if "textangle" in parts else 0.0
        except (ValueError, IndexError):
            return 0.0

    def _size(self, page: Element) -> tuple[float, float]:
        parts = _parts(page)
        try:
            _, _, width, height = _box(parts)
        except (ValueError, IndexError):
            return 0.0, 0.0
        return width, height

    def _add(self, element: Element) -> None:
        text = "".join(element.itertext()) if len(element) else element.text or ""
        parts = _parts(element)
        try:
            left, top, right, bottom = _box(parts)
            confidence = _after("x_wconf", parts) / 100 if "x_wconf" in parts else None
        except (ValueError, IndexError):
            if text.strip():
                raise self._document.wrong(f"{text.strip()!r} has no bbox in its title") from None
            return
        if self._page is None:
            self._page = self._document.page()
        if self._angle:
            quad = turned(left, top, right, bottom, self._angle)
            self._page.quad(text, quad, confidence, self._line, self._block)
        else:
            self._page.box(text, left, top, right, bottom, confidence, self._line, self._block)


def _kind(names: str) -> str:
    return next((name for name in names.split() if name.startswith("ocr")), "")


def _parts(element: Element) -> list[str]:
    """Of a title: "bbox 36 92 580 122; x_wconf 95"."""
    return element.get("title", "").replace(";", " ").split()


def _box(parts: list[str]) -> map[float]:
    at = 0 if parts[0] == "bbox" else parts.index("bbox")
    return map(float, parts[at + 1 : at + 5])


def _after(name: str, parts: list[str]) -> float:
    return float(parts[parts.index(name) + 1])


FORMAT = Format("hocr", "hOCR", _fits, _collect)
