"""Google Document AI: a Document, or the response of a processor that holds one."""

from __future__ import annotations

import msgspec

from turret_server.pipeline.documents.page import Quad, mark, upright
from turret_server.pipeline.documents.readers.builder import Builder, PageBuilder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse
from turret_server.pipeline.documents.readers.spans import Parts

# Clients write names of enumerations, or their numbers.
_ANGLES = {"PAGE_RIGHT": 90.0, "PAGE_DOWN": 180.0, "PAGE_LEFT": 270.0, 2: 90.0, 3: 180.0, 4: 270.0}
_BOXES = {"filled_checkbox": True, "unfilled_checkbox": False}
_MOST_OVERLAP = 2  # how often tokens may name a letter, on average
_NEAR = 0.6  # gap within a word, in heights: tokens are cut at punctuation, words are not


class _Part(msgspec.Struct, rename="camel", gc=False):
    pass


class _Segment(_Part, gc=False):
    start_index: int | str = 0  # left out when 0; strings, as JSON has no 64-bit numbers
    end_index: int | str = 0


class _Anchor(_Part, gc=False):
    text_segments: list[_Segment] | None = None


class _Point(_Part, gc=False):
    x: float = 0.0
    y: float = 0.0


class _Outline(_Part, gc=False):
    normalized_vertices: list[_Point] | None = None
    vertices: list[_Point] | None = None


class _Layout(_Part, gc=False):
    text_anchor: _Anchor | None = None
    bounding_poly: _Outline | None = None
    confidence: float | None = None
    orientation: str | int | None = None


class _Item(_Part, gc=False):
    layout: _Layout


class _Field(_Part, gc=False):
    """A key and its value, as the form parser finds them; a check box is no text."""

    field_value: _Layout | None = None
    value_type: str | None = None


class _Dimension(_Part, gc=False):
    width: float = 0.0
    height: float = 0.0
    unit: str = "pixels"


class _Page(_Part, gc=False):
    page_number: int | None = None
    dimension: _Dimension | None = None
    layout: _Layout | None = None
    blocks: list[_Item] | None = None
    paragraphs: list[_Item] | None = None
    lines: list[_Item] | None = None
    tokens: list[_Item] | None = None
    form_fields: list[_Field] | None = None


class _Document(_Part, gc=False):
    text: str = ""
    pages: list[_Page] | None = None


class _Response(_Document, gc=False):
    document: _Document | None = None


def _fits(content: Glimpse) -> bool:
    document = content.at("document") or content
    page = document.at("pages", 0)
    if page is None:
        return False
    return any(name in page.keys for name in ("tokens", "layout", "dimension"))


def _collect(content: _Response, document: Builder) -> None:
    source = content.document or content
    if source.pages is None:
        raise document.wrong("it has no 'pages'", "Send the Document that the processor returned.")
    line = 0
    for part in source.pages:
        line += _collect_page(part, source.text, line, document)


def _collect_page(source: _Page, text: str, first_line: int, document: Builder) -> int:
    """Add a page; returns how many lines it has."""
    size = source.dimension
    sized = size is not None and size.width > 0 and size.height > 0
    page = document.page(
        size.width if sized and size else 1,
        size.height if sized and size else 1,
        number=source.page_number,
        unit="px" if sized else "relative",
        angle=_ANGLES.get(source.layout.orientation or 0, 0.0) if source.layout else 0.0,
    )
    lines = source.lines or []
    items = source.tokens or lines or source.paragraphs or source.blocks or []
    by_line = Parts(_ranges(item, document) for item in lines)
    blocks = source.blocks or source.paragraphs or []
    by_block = Parts(_ranges(item, document) for item in blocks)
    word = _Pending(page)
    room = _MOST_OVERLAP * len(text)
    for item in items:
        ranges = _ranges(item, document)
        room -= sum(max(min(end, len(text)) - begin, 0) for begin, end in ranges)
        if room < 0:
            raise document.wrong("its tokens overlap", "Each letter of 'text' belongs to one.")
        content = "".join(text[begin:end] for begin, end in ranges)
        if not content.strip():
            continue
        start = ranges[0][0]
        quad = _quad(item.layout, page, content, document)
        line, block = by_line.at(start), by_block.at(start)
        line = line + first_line if line >= 0 else -1
        word.add(content, start, quad, item.layout.confidence, line, block)
    word.flush()
    for field in source.form_fields or ():
        value = field.field_value
        if field.value_type in _BOXES and value is not None and value.bounding_poly is not None:
            sign = mark(_BOXES[field.value_type])
            page.quad(sign, _quad(value, page, sign, document), value.confidence)
    return len(lines)


def _ranges(item: _Item, document: Builder) -> list[tuple[int, int]]:
    anchor = item.layout.text_anchor
    segments = anchor.text_segments if anchor is not None else None
    try:
        ranges = [(int(part.start_index), int(part.end_index)) for part in segments or ()]
    except ValueError as error:
        raise document.wrong(f"an index into its text is no number: {error}") from error
    if any(not 0 <= begin <= end for begin, end in ranges):
        raise document.wrong("an index into its text is negative, or an end before its start")
    return ranges


def _quad(shape: _Layout, page: PageBuilder, text: str, document: Builder) -> Quad:
    outline = shape.bounding_poly
    points = outline.normalized_vertices if outline is not None else None
    scale_x, scale_y = page.width, page.height
    if not points and outline is not None and outline.vertices:
        points, scale_x, scale_y = outline.vertices, 1.0, 1.0
    if not points:
        raise document.wrong(f"{text!r} has no boundingPoly", "Give every token one.")
    if len(points) == 4:
        a, b, c, d = points
    else:
        xs, ys = [p.x for p in points], [p.y for p in points]
        a, c = _Point(min(xs), min(ys)), _Point(max(xs), max(ys))
        b, d = _Point(c.x, a.y), _Point(a.x, c.y)
    return (
        a.x * scale_x, a.y * scale_y, b.x * scale_x, b.y * scale_y,
        c.x * scale_x, c.y * scale_y, d.x * scale_x, d.y * scale_y,
    )  # fmt: skip


class _Pending:
    """A word whose tokens are still coming: `$`, `1,200.00` and `)` are three."""

    def __init__(self, page: PageBuilder) -> None:
        self._page = page
        self._text = ""
        self._end = self._line = self._block = -1
        self._quad = upright(0, 0, 0, 0)
        self._confidence: float | None = None

    def add(
        self,
        text: str,
        start: int,
        quad: Quad,
        confidence: float | None,
        line: int,
        block: int,
    ) -> None:
        if (
            self._text
            and start == self._end
            and line == self._line
            and not self._text[-1].isspace()
            and _adjoin(self._quad, quad)
        ):
            self._text += text
            a, b, *_, g, h = self._quad
            _, _, c, d, e, f, _, _ = quad
            self._quad = a, b, c, d, e, f, g, h
            if self._confidence is not None and confidence is not None:
                confidence = min(self._confidence, confidence)
            self._confidence = confidence
        else:
            self.flush()
            self._text, self._quad, self._confidence = text, quad, confidence
            self._line, self._block = line, block
        self._end = start + len(text)

    def flush(self) -> None:
        if self._text:
            self._page.quad(self._text, self._quad, self._confidence, self._line, self._block)
        self._text = ""


def _adjoin(first: Quad, second: Quad) -> bool:
    """Whether `second` continues `first` in the direction of reading, with hardly a gap."""
    along_x, along_y = first[2] - first[0], first[3] - first[1]
    length = (along_x * along_x + along_y * along_y) ** 0.5
    if not length:
        return False
    height = abs((first[6] - first[0]) * along_y - (first[7] - first[1]) * along_x) / length
    gap = ((second[0] - first[2]) * along_x + (second[1] - first[3]) * along_y) / length
    return -_NEAR * height < gap < _NEAR * height


FORMAT = Format("google", "a Google Document AI document", _fits, _collect, (_Response,))
