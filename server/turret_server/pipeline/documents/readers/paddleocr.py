"""PaddleOCR 3 and PP-Structure: results by field; version 2: lists of [points, [text, score]]."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from turret_server.pipeline.documents.readers.builder import Builder, PageBuilder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse

_Points: TypeAlias = tuple[tuple[float, float], ...]
_Box: TypeAlias = tuple[float, ...]


class _Fields(msgspec.Struct, gc=False):
    rec_texts: list[str] | None = None
    rec_scores: list[float] | None = None
    rec_polys: list[_Points] | None = None
    rec_boxes: list[_Box] | None = None
    text_word: list[list[str]] | None = None  # with return_word_box
    text_word_boxes: list[list[_Box]] | None = None
    page_index: int | None = None
    width: float | None = None
    height: float | None = None


class _Structure(_Fields, gc=False):
    """PP-Structure has the fields within."""

    overall_ocr_res: _Fields | None = None


class _Result(_Structure, gc=False):
    """One page; `result.json` wraps it in "res"."""

    res: _Structure | None = None


class _Text(msgspec.Struct, array_like=True, gc=False):
    text: str
    score: float | None = None


class _Line(msgspec.Struct, array_like=True, gc=False):
    box: _Points
    text: _Text


def _fits(content: Glimpse) -> bool:
    result = content.at(0) if content.length else content
    if result is None:
        return False
    result = result.at("res") or result
    result = result.at("overall_ocr_res") or result
    if "rec_texts" in result.keys:
        return True
    texts = (content.at(0, 1, 0), content.at(0, 0, 1, 0))  # the lines of one page, or of several
    return any(text is not None and text.is_text for text in texts)


def _collect(content: Any, document: Builder) -> None:
    if isinstance(content, _Result):
        content = [content]
    if content and isinstance(content[0], _Line):
        content = [content]
    for source in content:
        if not isinstance(source, _Result):
            page = document.page()
            for number, line in enumerate(source or ()):
                page.points(line.text.text, line.box, line.text.score, number)
            continue
        result = source.res or source
        number = None if result.page_index is None else result.page_index + 1
        page = document.page(result.width, result.height, number=number)
        _collect_fields(result.overall_ocr_res or result, page, document)


def _collect_fields(fields: _Fields, page: PageBuilder, document: Builder) -> None:
    if fields.rec_texts is None:
        raise document.wrong("it has no 'rec_texts'")
    texts = fields.rec_texts
    if fields.rec_polys is not None:
        boxes = fields.rec_polys
    else:
        boxes = [_corners(box, document) for box in fields.rec_boxes or ()]
    scores = fields.rec_scores or [None] * len(texts)
    document.same_length({"rec_texts": texts, "rec_polys": boxes, "rec_scores": scores})
    words, word_boxes = fields.text_word or [], fields.text_word_boxes or []
    document.same_length({"text_word": words, "text_word_boxes": word_boxes})
    for number, (text, box, score) in enumerate(zip(texts, boxes, scores, strict=True)):
        if number < len(words) and words[number]:
            own, own_boxes = words[number], word_boxes[number]
            document.same_length({"text_word": own, "text_word_boxes": own_boxes})
            for word, word_box in zip(own, own_boxes, strict=True):
                page.outline(word, word_box, score, number)
        else:
            page.points(text, box, score, number)


def _corners(box: _Box, document: Builder) -> _Points:
    if len(box) != 4:
        raise document.wrong(f"one of its 'rec_boxes' has {len(box)} numbers", "Four are needed.")
    left, top, right, bottom = box
    return (left, top), (right, top), (right, bottom), (left, bottom)


FORMAT = Format(
    "paddleocr", "PaddleOCR's output", _fits, _collect,
    (_Result, list[_Result], list[list[_Line] | None], list[_Line]),
)  # fmt: skip
