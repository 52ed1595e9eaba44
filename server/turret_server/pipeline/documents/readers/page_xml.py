"""PAGE XML, of Transkribus, OCR-D and eScriptorium: outlines of words, or of lines only."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from turret_server.pipeline.documents.readers.builder import Builder, PageBuilder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse
from turret_server.pipeline.documents.readers.markup import parse_xml
from turret_server.pipeline.documents.readers.quads import Box, turned


def _fits(content: Glimpse) -> bool:
    return content.root == "PcGts"


def _collect(data: bytes, document: Builder) -> None:
    root = parse_xml(data, document)
    space, _, name = root.tag.rpartition("}")
    if name != "PcGts":
        raise document.wrong(f"its outermost element is <{name}>", "PAGE XML begins with <PcGts>.")
    prefix = space + "}" if space else ""
    reader = _Reader(prefix, document)
    for page in root.findall(prefix + "Page"):
        reader.page(page)


class _Reader:
    def __init__(self, prefix: str, document: Builder) -> None:
        self._document = document
        self._region, self._line = prefix + "TextRegion", prefix + "TextLine"
        self._word, self._coords = prefix + "Word", prefix + "Coords"
        self._equiv, self._unicode = prefix + "TextEquiv", prefix + "Unicode"
        self._order = prefix + "ReadingOrder"
        self._num_lines = self._num_regions = 0

    def page(self, element: Element) -> None:
        """Add a page; its regions in the reading order that the file gives."""
        width, height = element.get("imageWidth", "0"), element.get("imageHeight", "0")
        try:
            page = self._document.page(float(width), float(height))
        except ValueError:
            raise self._document.wrong(f"its page measures {width!r} x {height!r}") from None
        regions = list(element.iter(self._region))
        if (order := element.find(self._order)) is not None:
            # Groups nest; their members stand in order, whatever their indices say.
            refs = [ref for part in order.iter() if (ref := part.get("regionRef")) is not None]
            rank = {ref: i for i, ref in reversed(list(enumerate(refs)))}
            regions.sort(key=lambda region: rank.get(region.get("id", ""), len(rank)))
        for region in regions:
            words: list[Element] = []
            lines: list[int] = []
            for line in region.findall(self._line):
                own = line.findall(self._word) or [line]
                words += own
                lines += [self._num_lines] * len(own)
                self._num_lines += 1
            self._add(page, words, lines, -_angle(region.get("orientation")))
            self._num_regions += 1

    def _add(self, page: PageBuilder, words: list[Element], lines: list[int], turn: float) -> None:
        """Add the words of a region, turned clockwise by so many degrees."""
        texts: list[str] = []
        boxes: list[Box] = []
        confidences: list[float | None] = []
        numbers: list[int] = []
        for element, number in zip(words, lines, strict=True):
            equiv = element.find(self._equiv)  # others are alternatives
            text = equiv.findtext(self._unicode) if equiv is not None else None
            if equiv is None or not text:
                continue
            texts.append(text)
            numbers.append(number)
            coords = element.find(self._coords)
            points = "" if coords is None else coords.get("points", "")
            sure = equiv.get("conf")
            try:
                boxes.append(_around(list(map(float, points.replace(",", " ").split()))))
                confidences.append(None if sure is None else float(sure))
            except ValueError:
                raise self._document.wrong(
                    f"{text!r} has no Coords, or no numbers in them", "Export with coordinates."
                ) from None
        blocks = [self._num_regions] * len(texts)
        if not turn:
            page.boxes(texts, boxes, confidences, numbers, blocks)
            return
        for i, box in enumerate(boxes):
            page.quad(texts[i], turned(*box, turn), confidences[i], numbers[i], blocks[i])


def _around(numbers: list[float]) -> Box:
    """The box around an outline: outlines hug the letters and begin anywhere."""
    if len(numbers) == 8:
        a, b, c, d, e, f, g, h = numbers
        if a == g and b == d and c == e and f == h:  # a box already, as Tesseract's are
            return a, b, e, f
    if len(numbers) % 2:
        raise ValueError
    xs, ys = numbers[0::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _angle(text: str | None) -> float:
    try:
        angle = float(text or 0)
    except ValueError:
        return 0.0
    return angle if abs(angle) <= 360 else 0.0


FORMAT = Format("page-xml", "PAGE XML", _fits, _collect)
