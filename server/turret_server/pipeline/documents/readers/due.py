"""The DUE benchmark's `documents_content.jsonl`: tokens and positions, with ranges of pages."""

from __future__ import annotations

import msgspec

from turret_server.pipeline.documents.readers.builder import Builder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse
from turret_server.pipeline.documents.readers.quads import Box

_BEST = "microsoft_cv"  # of the tools that a file has results of; LATIN reads this one too


class _Structure(msgspec.Struct, gc=False):
    structure_value: list[tuple[int, int]]  # of tokens: begin, end (exclusive)
    positions: list[Box] | None = None


class _Structures(msgspec.Struct, gc=False):
    pages: _Structure | None = None
    lines: _Structure | None = None


class _Common(msgspec.Struct, gc=False):
    tokens: list[str]
    positions: list[Box]
    scores: list[float] | None = None
    structures: _Structures | None = None


class _Content(msgspec.Struct, gc=False):
    tool_name: str = ""
    common_format: _Common | None = None
    tokens_layer: _Common | None = None  # its name in the published schema


class _Document(msgspec.Struct, gc=False):
    contents: list[_Content]


def _fits(content: Glimpse) -> bool:
    if content.at("contents", 0, "tool_name") is not None:
        return True
    source = content.at("common_format") or content.at("tokens_layer") or content
    return "tokens" in source.keys and "positions" in source.keys


def _collect(content: _Document | _Content | _Common, document: Builder) -> None:
    source = _common(content)
    if source is None:
        raise document.wrong("none of its 'contents' has a 'common_format' or 'tokens_layer'")
    tokens, positions = source.tokens, source.positions
    scores = source.scores or [None] * len(tokens)
    document.same_length({"tokens": tokens, "positions": positions, "scores": scores})
    pages, lines = None, None
    if source.structures is not None:
        pages, lines = source.structures.pages, source.structures.lines
    of_lines = [-1] * len(tokens)
    taken = 0
    for number, (begin, end) in enumerate(lines.structure_value if lines is not None else ()):
        _check_range("line", begin, end, len(tokens), document)
        taken += end - begin
        if taken > len(tokens):
            raise document.wrong("its lines overlap", "Each token belongs to one line.")
        of_lines[begin:end] = [number] * (end - begin)
    pages = pages or _Structure([(0, len(tokens))])
    sizes = pages.positions or [(0.0, 0.0, 0.0, 0.0)] * len(pages.structure_value)
    document.same_length({"pages": pages.structure_value, "positions of pages": sizes})
    for (begin, end), (left, top, right, bottom) in zip(pages.structure_value, sizes, strict=True):
        _check_range("page", begin, end, len(tokens), document)
        page = document.page(right - left, bottom - top)
        boxes = positions[begin:end]
        if left or top:  # one system of coordinates for all pages
            boxes = [(x0 - left, y0 - top, x1 - left, y1 - top) for x0, y0, x1, y1 in boxes]
        page.boxes(tokens[begin:end], boxes, scores[begin:end], of_lines[begin:end])


def _check_range(what: str, begin: int, end: int, num_tokens: int, document: Builder) -> None:
    if not 0 <= begin <= end <= num_tokens:
        raise document.wrong(f"a {what} has the tokens {begin} to {end} of {num_tokens}")


def _common(content: _Document | _Content | _Common) -> _Common | None:
    if isinstance(content, _Common):
        return content
    if isinstance(content, _Content):
        return content.common_format or content.tokens_layer
    found = [part for part in content.contents if _common(part) is not None]
    best = [part for part in found if part.tool_name == _BEST]
    return _common((best or found)[-1]) if found else None


FORMAT = Format("due", "a DUE document", _fits, _collect, (_Common, _Document, _Content))
