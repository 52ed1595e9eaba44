"""docTR's `export()`: coordinates relative to the page, whose pixels it gives as well."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from turret_server.pipeline.documents.readers.builder import Builder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse

# Two corners, or four if pages are not assumed to be straight.
_Geometry: TypeAlias = tuple[tuple[float, float], ...]


class _Word(msgspec.Struct, gc=False):
    value: str
    geometry: _Geometry
    confidence: float | None = None


class _Line(msgspec.Struct, gc=False):
    words: list[_Word]


class _Block(msgspec.Struct, gc=False):
    lines: list[_Line]


class _Page(msgspec.Struct, gc=False):
    blocks: list[_Block]
    dimensions: tuple[float, float]  # height, width
    page_idx: int | None = None


class _Document(msgspec.Struct, gc=False):
    pages: list[_Page]


def _fits(content: Glimpse) -> bool:
    page = content.at("pages", 0) or content
    return "blocks" in page.keys and "dimensions" in page.keys


def _collect(content: _Document | _Page, document: Builder) -> None:
    line = block = -1
    # "orientation" is not read: with straighten_pages the coordinates are those without it.
    for source in content.pages if isinstance(content, _Document) else [content]:
        height, width = source.dimensions
        page = document.page(width, height)
        for part in source.blocks:
            block += 1
            for row in part.lines:
                line += 1
                for word in row.words:
                    if len(word.geometry) == 2:
                        (x0, y0), (x1, y1) = word.geometry
                        page.box(
                            word.value, x0 * width, y0 * height, x1 * width, y1 * height,
                            word.confidence, line, block,
                        )  # fmt: skip
                    else:
                        scaled = [(x * width, y * height) for x, y in word.geometry]
                        page.points(word.value, scaled, word.confidence, line, block)


FORMAT = Format("doctr", "a docTR export", _fits, _collect, (_Document, _Page))
