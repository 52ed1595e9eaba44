"""ALTO 2 to 4: the XML of libraries' scans, which Tesseract and ABBYY write too."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from turret_server.pipeline.documents.readers.builder import Builder, PageBuilder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse
from turret_server.pipeline.documents.readers.markup import parse_xml
from turret_server.pipeline.documents.readers.quads import Box

# Unit of the file -> ours, and how many of the file's are one of ours.
_UNITS = {"pixel": ("px", 1.0), "mm10": ("mm", 10.0), "inch1200": ("inch", 1200.0)}


def _fits(content: Glimpse) -> bool:
    return content.root == "alto"


def _collect(data: bytes, document: Builder) -> None:
    root = parse_xml(data, document)
    space, _, name = root.tag.rpartition("}")
    if name != "alto":
        raise document.wrong(f"its outermost element is <{name}>", "ALTO begins with <alto>.")
    prefix = space + "}" if space else ""
    named = (root.findtext(f"{prefix}Description/{prefix}MeasurementUnit") or "pixel").strip()
    if named not in _UNITS:
        raise document.wrong(
            f"its MeasurementUnit is {named!r}", f"It must be one of {', '.join(_UNITS)}."
        )
    unit, divisor = _UNITS[named]
    line = block = -1
    for element in root.findall(f"{prefix}Layout/{prefix}Page"):
        width, height = _size(element, prefix)
        page = document.page(width / divisor, height / divisor, unit=unit)
        for part in element.iter(prefix + "TextBlock"):
            block += 1
            turn = -_number(part.get("ROTATION"))  # which is counterclockwise
            for row in part.findall(prefix + "TextLine"):
                line += 1
                _collect_line(row, prefix, page, document, (divisor, turn, line, block))


def _collect_line(
    row: Element,
    prefix: str,
    page: PageBuilder,
    document: Builder,
    place: tuple[float, float, int, int],
) -> None:
    divisor, turn, line, block = place
    word, hyphen = prefix + "String", prefix + "HYP"
    texts: list[str] = []
    boxes: list[Box] = []
    confidences: list[float | None] = []
    for part in row:
        get = part.get
        if part.tag == hyphen and texts:
            texts[-1] += get("CONTENT", "")
        if part.tag != word:
            continue
        try:
            left, top = float(get("HPOS", "")), float(get("VPOS", ""))
            right, bottom = left + float(get("WIDTH", "")), top + float(get("HEIGHT", ""))
            sure = get("WC")
            confidences.append(None if sure is None else float(sure))
        except ValueError:
            raise document.wrong(
                f"the String {get('CONTENT')!r} has no HPOS, VPOS, WIDTH and HEIGHT, or no numbers",
                "Export with the positions of words.",
            ) from None
        texts.append(get("CONTENT", ""))
        boxes.append((left / divisor, top / divisor, right / divisor, bottom / divisor))
    page.line(texts, boxes, confidences, line, block, turn)


def _size(page: Element, prefix: str) -> tuple[float, float]:
    """Width and height; 0 where the file does not say them."""
    width, height = _number(page.get("WIDTH")), _number(page.get("HEIGHT"))
    space = page.find(prefix + "PrintSpace")
    if (width and height) or space is None:
        return width, height
    return (
        _number(space.get("HPOS")) + _number(space.get("WIDTH")),
        _number(space.get("VPOS")) + _number(space.get("HEIGHT")),
    )


def _number(text: str | None) -> float:
    try:
        value = float(text or 0)
    except ValueError:
        return 0.0
    return value if abs(value) < 1e9 else 0.0


FORMAT = Format("alto", "ALTO XML", _fits, _collect)
