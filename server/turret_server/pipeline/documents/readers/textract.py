"""Amazon Textract: one response, or the list of responses that a paginated result comes in."""

from __future__ import annotations

import msgspec

from turret_server.pipeline.documents.page import mark
from turret_server.pipeline.documents.readers.builder import Builder, PageBuilder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse


class _Part(msgspec.Struct, rename="pascal", gc=False):
    pass


class _Point(_Part, gc=False):
    x: float
    y: float


class _Box(_Part, gc=False):
    left: float
    top: float
    width: float
    height: float


class _Geometry(_Part, gc=False):
    bounding_box: _Box | None = None
    polygon: tuple[_Point, ...] | None = None


class _Relationship(_Part, gc=False):
    type: str = ""
    ids: list[str] = []


class _Block(_Part, gc=False):
    block_type: str
    id: str = ""
    text: str | None = None
    confidence: float | None = None
    geometry: _Geometry | None = None
    relationships: list[_Relationship] | None = None
    page: int | None = None
    selection_status: str | None = None  # of a check box


class _Response(_Part, gc=False):
    blocks: list[_Block]


def _fits(content: Glimpse) -> bool:
    return content.at("Blocks") is not None or content.at(0, "Blocks") is not None


def _collect(content: _Response | list[_Response], document: Builder) -> None:
    responses = content if isinstance(content, list) else [content]
    blocks = [block for response in responses for block in response.blocks]
    lines = [block for block in blocks if block.block_type == "LINE"]
    line_of_word = _parents(lines)
    # LAYOUT_TEXT, LAYOUT_TABLE and the like hold lines; only AnalyzeDocument gives them.
    layout_of_line = _parents([block for block in blocks if block.block_type.startswith("LAYOUT_")])
    block_of = [layout_of_line.get(line.id, -1) for line in lines]
    with_words = {block.page for block in blocks if block.block_type == "WORD"}
    pages: dict[int, PageBuilder] = {}
    line = -1
    for block in blocks:
        kind, number = block.block_type, block.page or 1
        if kind == "PAGE" or number not in pages:
            # In a list of results of one page each, every page says that it is number 1.
            named = None if number in pages else block.page
            pages[number] = document.page(1, 1, number=named, unit="relative")
        if kind == "WORD":
            own = line_of_word.get(block.id, -1)
            _add(pages[number], block, own, block_of[own] if own >= 0 else -1, document)
        elif kind == "SELECTION_ELEMENT":
            block.text = mark(block.selection_status == "SELECTED")  # it has none of its own
            _add(pages[number], block, -1, -1, document)
        elif kind == "LINE":
            line += 1
            if block.page not in with_words:
                _add(pages[number], block, line, block_of[line], document)


def _parents(blocks: list[_Block]) -> dict[str, int]:
    """The number of the block that names an id as its child."""
    return {
        child: number
        for number, block in enumerate(blocks)
        for relationship in block.relationships or ()
        if relationship.type == "CHILD"
        for child in relationship.ids
    }


def _add(page: PageBuilder, block: _Block, line: int, number: int, document: Builder) -> None:
    text, shape = block.text or "", block.geometry
    confidence = None if block.confidence is None else block.confidence / 100
    if shape is not None and shape.polygon is not None and len(shape.polygon) == 4:
        a, b, c, d = shape.polygon
        page.quad(text, (a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y), confidence, line, number)
    elif shape is not None and shape.bounding_box is not None:
        box = shape.bounding_box
        right, bottom = box.left + box.width, box.top + box.height
        page.box(text, box.left, box.top, right, bottom, confidence, line, number)
    else:
        raise document.wrong(f"{text!r} has no Geometry", "Send the response as it came.")


FORMAT = Format(
    "textract", "an Amazon Textract response", _fits, _collect, (_Response, list[_Response])
)
