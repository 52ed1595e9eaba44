"""Plain words and boxes: our neutral form, and the usual ways of writing the same by hand.

{"words": ["Total", "$5"], "boxes": [[10, 10, 50, 20], [60, 10, 80, 20]], "width": 200, ...}
{"segments": [{"text": "Total", "quad": [10, 10, 50, 10, 50, 20, 10, 20]}], ...}
{"pages": [...]} or a list of either, or of segments
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any, TypeAlias, cast

import msgspec

from turret_server.pipeline.documents.readers.builder import Builder, PageBuilder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse
from turret_server.pipeline.documents.readers.quads import Box, clockwise

_Number: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)]


class _Sides(msgspec.Struct, gc=False):
    """A box by name, in one of the ways of naming its sides."""

    left: float | None = None
    top: float | None = None
    right: float | None = None
    bottom: float | None = None
    x: float | None = None
    y: float | None = None
    x0: float | None = None
    y0: float | None = None
    x1: float | None = None
    y1: float | None = None
    x2: float | None = None
    y2: float | None = None
    width: float | None = None
    height: float | None = None
    w: float | None = None
    h: float | None = None


# Four numbers, eight, or points.
_Point: TypeAlias = tuple[float, float]
_Box: TypeAlias = tuple[float | _Point, ...] | _Sides


class _Segment(msgspec.Struct, gc=False):
    text: str
    box: _Box | None = None
    bbox: _Box | None = None
    quad: _Box | None = None
    polygon: _Box | None = None
    points: _Box | None = None
    confidence: float | None = None
    conf: float | None = None
    score: float | None = None
    line: _Number = -1
    block: _Number = -1


class _Page(msgspec.Struct, gc=False):
    words: list[str | _Segment] | None = None
    tokens: list[str | _Segment] | None = None
    segments: list[str | _Segment] | None = None
    boxes: list[_Box] | None = None
    bboxes: list[_Box] | None = None
    quads: list[_Box] | None = None
    confidences: list[float | None] | None = None
    scores: list[float | None] | None = None
    width: float | None = None
    height: float | None = None
    unit: str | None = None
    angle: float | None = None
    number: int | None = None
    page: int | str | None = None


class _Document(_Page, gc=False):
    pages: list[_Page] | None = None


_TEXTS = ("words", "tokens", "segments")
_BOXES = ("boxes", "bboxes", "quads")
_OWN_BOXES = ("box", "bbox", "quad", "polygon", "points")
_CONFIDENCES = ("confidence", "conf", "score")
_PER_MILLE = "0-1000"  # LayoutLM's
_HUGE = 1e7
_UNITS = {
    "px": "px", "pixel": "px", "pixels": "px", "pt": "pt", "point": "pt", "points": "pt",
    "inch": "inch", "in": "inch", "mm": "mm",
    "relative": "relative", "0-1": "relative", _PER_MILLE: _PER_MILLE,
}  # fmt: skip


def _fits(content: Glimpse) -> bool:
    if content.length:
        first = content.at(0)
        if first is not None and "text" in first.keys:
            return any(name in first.keys for name in ("box", "bbox", "quad", "polygon", "points"))
    page = content.at("pages", 0) or content.at(0) or content
    if any(name in page.keys for name in _BOXES) and "txts" not in page.keys:
        return any(name in page.keys for name in _TEXTS)
    segment = next((page.at(name, 0) for name in _TEXTS if name in page.keys), None)
    if segment is not None:
        return "text" in segment.keys
    # An empty page.
    return "segments" in page.keys or ("words" in page.keys and "pageNumber" not in page.keys)


def _collect(content: Any, document: Builder) -> None:
    if isinstance(content, _Document):
        pages: Sequence[_Page] = [content] if content.pages is None else content.pages
    elif content and isinstance(content[0], _Segment):
        pages = [_Page(segments=content)]
    else:
        pages = content
    for source in pages:
        _collect_page(source, document)


def _collect_page(source: _Page, document: Builder) -> None:
    texts = _first(source, _TEXTS)
    if texts is None:
        raise document.wrong("it has neither 'words' nor 'segments'", "Send words and their boxes.")
    boxes = _first(source, _BOXES)
    if boxes is None:
        boxes = [_own_box(text, document) for text in texts]
    document.same_length({"words": texts, "boxes": boxes})
    confidences = source.confidences or source.scores or [None] * len(texts)
    document.same_length({"words": texts, "confidences": confidences})
    if (plain := _plain(texts, boxes)) is not None:
        words, sides = plain
        page, scale = _begin(source, sides, document)
        if scale is not None:
            x, y = scale
            sides = [(x0 * x, y0 * y, x1 * x, y1 * y) for x0, y0, x1, y1 in sides]
        page.boxes(words, sides, confidences)
        return
    outlines = [_flat(box, document) for box in boxes]
    page, scale = _begin(source, outlines, document)
    for text, outline, confidence in zip(texts, outlines, confidences, strict=True):
        if scale is not None:
            outline = tuple([value * scale[i % 2] for i, value in enumerate(outline)])
        line = block = -1
        if isinstance(text, _Segment):
            if confidence is None:
                confidence = _first(text, _CONFIDENCES)
            line, block = text.line, text.block
            text = text.text
        if len(outline) == 4:
            page.box(text, *outline, confidence, line, block)
        elif len(outline) == 8:
            page.quad(text, clockwise(outline), confidence, line, block)
        else:
            page.outline(text, outline, confidence, line, block)


def _plain(texts: Any, boxes: Any) -> tuple[Sequence[str], Sequence[Box]] | None:
    """Both, if all texts are strings and all boxes four numbers, as nearly always."""
    if (
        {str}.issuperset(map(type, texts))
        and {tuple}.issuperset(map(type, boxes))
        and {4}.issuperset(map(len, boxes))
        and {float}.issuperset(map(type, chain.from_iterable(boxes)))
    ):
        return texts, boxes
    return None


def _begin(
    source: _Page, outlines: Sequence[tuple[float, ...]], document: Builder
) -> tuple[PageBuilder, tuple[float, float] | None]:
    """The page, and what to multiply x and y by."""
    number = source.page if isinstance(source.page, int) else source.number
    width, height = source.width or 0.0, source.height or 0.0
    named = source.unit
    if named is not None and named.lower() not in _UNITS:
        raise document.wrong(
            f"its unit is {named!r}", f"It must be one of {', '.join(dict.fromkeys(_UNITS))}."
        )
    unit = _UNITS[named.lower()] if named is not None else "px"
    if named is None and _within_one(outlines):
        unit = "relative"
    if unit not in ("relative", _PER_MILLE):
        return document.page(width, height, number=number, unit=unit, angle=source.angle), None
    whole = 1000.0 if unit == _PER_MILLE else 1.0
    if 1.0 < width < _HUGE and 1.0 < height < _HUGE:
        page = document.page(width, height, number=number, angle=source.angle)
        return page, (width / whole, height / whole)
    page = document.page(1.0, 1.0, number=number, unit="relative", angle=source.angle)
    return page, (1.0 / whole, 1.0 / whole)


def _within_one(outlines: Sequence[tuple[float, ...]]) -> bool:
    """Whether all coordinates lie in 0 to 1, which no page's pixels do."""
    if not outlines or max(outlines[0], default=0.0) > 1.0:
        return False
    return all(0.0 <= value <= 1.0 for outline in outlines for value in outline)


def _first(source: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        if (value := getattr(source, name)) is not None:
            return value
    return None


def _own_box(text: str | _Segment, document: Builder) -> _Box:
    if isinstance(text, str):
        raise document.wrong(
            "it has words without 'boxes'", "Send as many boxes as words, in the same order."
        )
    box = _first(text, _OWN_BOXES)
    if box is None:
        raise document.wrong(
            f"{text.text[:40]!r} has no box", f"Give it one of {', '.join(_OWN_BOXES)}."
        )
    return box


def _flat(box: _Box, document: Builder) -> tuple[float, ...]:
    """Left, top, right and bottom; or x and y of corners in turn."""
    if isinstance(box, _Sides):
        if (sides := _sides(box)) is not None:
            return sides
    elif all(type(value) is float for value in box):
        if len(box) == 4 or (len(box) >= 6 and len(box) % 2 == 0):
            return cast(tuple[float, ...], box)
    elif len(box) >= 2 and all(type(value) is tuple for value in box):
        return tuple([number for x_y in cast(tuple[_Point, ...], box) for number in x_y])
    raise document.wrong(
        f"one of its boxes is {msgspec.json.encode(box)[:80].decode()}",
        "A box is [left, top, right, bottom], four corners, or {left, top, right, bottom}.",
    )


def _sides(box: _Sides) -> tuple[float, ...] | None:
    for left, top, right, bottom in _CORNERS:
        sides = [getattr(box, name) for name in (left, top, right, bottom)]
        if None not in sides:
            return tuple(sides)
    for left, top, width, height in _EXTENTS:
        x, y, w, h = (getattr(box, name) for name in (left, top, width, height))
        if None not in (x, y, w, h):
            return x, y, x + w, y + h
    return None


_CORNERS = (
    ("left", "top", "right", "bottom"),
    ("x0", "y0", "x1", "y1"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "top", "x1", "bottom"),  # pdfplumber's
)
_EXTENTS = (
    ("left", "top", "width", "height"),
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
)

FORMAT = Format(
    "words", "words and boxes", _fits, _collect, (_Document, list[_Segment], list[_Page])
)
