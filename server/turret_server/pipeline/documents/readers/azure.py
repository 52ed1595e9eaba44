"""Azure Document Intelligence (Form Recognizer) v2 to v4: the response, or what its SDKs export."""

from __future__ import annotations

import msgspec

from turret_server.pipeline.documents.page import mark
from turret_server.pipeline.documents.readers.azure_read import UNITS, ReadPage, collect_read
from turret_server.pipeline.documents.readers.builder import Builder, PageBuilder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse
from turret_server.pipeline.documents.readers.spans import Parts


class _Point(msgspec.Struct, gc=False):
    x: float
    y: float


class _Span(msgspec.Struct, gc=False):
    offset: int
    length: int


class _Shape(msgspec.Struct, gc=False, kw_only=True):
    polygon: tuple[float | _Point, ...] | None = None
    boundingBox: tuple[float | _Point, ...] | None = None  # previews of v3
    confidence: float | None = None
    span: _Span | None = None
    spans: list[_Span] | None = None


class _Text(_Shape, gc=False, kw_only=True):
    """A word or a line."""

    content: str


class _Mark(_Shape, gc=False, kw_only=True):
    """A check box."""

    state: str


class _Page(msgspec.Struct, gc=False):
    pageNumber: int | None = None
    page_number: int | None = None  # the Python SDK of v3
    width: float | None = None
    height: float | None = None
    unit: str | None = None
    angle: float | None = None
    words: list[_Text] | None = None
    lines: list[_Text] | None = None
    selectionMarks: list[_Mark] | None = None
    selection_marks: list[_Mark] | None = None  # the Python SDK of v3


class _Paragraph(msgspec.Struct, gc=False):
    spans: list[_Span] | None = None


class _Analysis(msgspec.Struct, gc=False):
    pages: list[_Page] | None = None
    paragraphs: list[_Paragraph] | None = None
    readResults: list[ReadPage] | None = None  # v2


class _Result(_Analysis, gc=False):
    analyzeResult: _Analysis | None = None


def _fits(content: Glimpse) -> bool:
    if "analyzeResult" in content.keys or "readResults" in content.keys:
        return True
    page = content.at("pages", 0)
    if page is None or not ("pageNumber" in page.keys or "page_number" in page.keys):
        return False
    # Google numbers its pages too.
    return not any(name in page.keys for name in ("tokens", "layout", "dimension"))


def _collect(content: _Result, document: Builder) -> None:
    analysis = content.analyzeResult or content
    if analysis.pages is None and analysis.readResults is not None:
        collect_read(analysis.readResults, document)
        return
    if analysis.pages is None:
        raise document.wrong(
            "it has neither 'analyzeResult.pages' nor 'analyzeResult.readResults'",
            "Send the response of a finished analysis, as it came.",
        )
    paragraphs = Parts(_ranges(paragraph.spans) for paragraph in analysis.paragraphs or ())
    num_lines = 0
    for source in analysis.pages:
        number = source.pageNumber or source.page_number
        if number is None:
            raise document.wrong("one of its pages has no 'pageNumber'")
        page = document.page(
            source.width,
            source.height,
            number=number,
            unit=UNITS.get(source.unit or "pixel", "px"),
            angle=source.angle,
        )
        lines = source.lines or []
        by_span = Parts(_ranges(line.spans) for line in lines)
        for i, item in enumerate(source.words or lines):
            start = _start(item)
            line = by_span.at(start) if source.words else i
            _add(
                page,
                item.content,
                item,
                line + num_lines if line >= 0 else -1,
                paragraphs.at(start),
            )
        for box in source.selectionMarks or source.selection_marks or ():
            if not (box.polygon or box.boundingBox):
                continue
            _add(page, mark(box.state == "selected"), box, -1, paragraphs.at(_start(box)))
        num_lines += len(lines)


def _start(item: _Shape) -> int:
    if item.span is not None:
        return item.span.offset
    return item.spans[0].offset if item.spans else -1


def _ranges(spans: list[_Span] | None) -> list[tuple[int, int]]:
    return [(span.offset, span.offset + span.length) for span in spans or ()]


def _add(page: PageBuilder, text: str, item: _Shape, line: int, block: int) -> None:
    outline = item.polygon or item.boundingBox or ()
    flat: list[float] = []
    for value in outline:
        if isinstance(value, _Point):
            flat += (value.x, value.y)
        else:
            flat.append(value)
    page.outline(text, tuple(flat), item.confidence, line, block)


FORMAT = Format("azure", "Azure Document Intelligence", _fits, _collect, (_Result,))
