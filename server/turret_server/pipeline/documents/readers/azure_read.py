"""Microsoft's Read, v2 (`recognitionResults`, as in DocVQA's files) to v3.2 (`readResults`)."""

from __future__ import annotations

import msgspec

from turret_server.pipeline.documents.page import mark
from turret_server.pipeline.documents.readers.builder import Builder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse

UNITS = {"pixel": "px", "inch": "inch"}


class _Word(msgspec.Struct, rename="camel", gc=False):
    text: str
    bounding_box: tuple[float, ...] = ()
    confidence: float | str | None = None  # v2 says "Low", or nothing


class _Line(msgspec.Struct, rename="camel", gc=False):
    text: str
    bounding_box: tuple[float, ...] = ()
    words: list[_Word] | None = None


class _Mark(msgspec.Struct, rename="camel", gc=False):
    state: str
    bounding_box: tuple[float, ...] = ()
    confidence: float | None = None


class ReadPage(msgspec.Struct, rename="camel", gc=False):
    """A page of `readResults` or `recognitionResults`."""

    lines: list[_Line] | None = None
    selection_marks: list[_Mark] | None = None
    page: int | None = None
    width: float | None = None
    height: float | None = None
    unit: str | None = None
    angle: float | None = None
    clockwise_orientation: float | None = None


class _Analysis(msgspec.Struct, rename="camel", gc=False):
    read_results: list[ReadPage]


class _Result(msgspec.Struct, rename="camel", gc=False):
    recognition_results: list[ReadPage] | None = None
    analyze_result: _Analysis | None = None


def collect_read(pages: list[ReadPage], document: Builder) -> None:
    """Add the pages of a Read result."""
    number = -1
    for source in pages:
        page = document.page(
            source.width,
            source.height,
            number=source.page,
            unit=UNITS.get(source.unit or "pixel", "px"),
            angle=source.angle if source.angle is not None else source.clockwise_orientation,
        )
        for line in source.lines or ():
            number += 1
            if not line.words:
                page.outline(line.text, line.bounding_box, None, number)
                continue
            for word in line.words:
                confidence = word.confidence
                page.outline(
                    word.text,
                    word.bounding_box,
                    None if isinstance(confidence, str) else confidence,
                    number,
                )
        for box in source.selection_marks or ():
            page.outline(mark(box.state == "selected"), box.bounding_box, box.confidence)


def _fits(content: Glimpse) -> bool:
    return "recognitionResults" in content.keys


def _collect(content: _Result, document: Builder) -> None:
    pages = content.recognition_results
    if pages is None and content.analyze_result is not None:
        pages = content.analyze_result.read_results
    if pages is None:
        raise document.wrong("it has no 'recognitionResults'", "Send Microsoft's JSON as it came.")
    collect_read(pages, document)


FORMAT = Format("azure-read", "Microsoft Read (DocVQA)", _fits, _collect, (_Result,))
