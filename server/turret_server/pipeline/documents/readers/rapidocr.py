"""RapidOCR and EasyOCR: lists of lines with box, text and score, or RapidOCR's output by field."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from turret_server.pipeline.documents.readers.builder import Builder, PageBuilder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse

_Points: TypeAlias = tuple[tuple[float, float], ...]


class _Line(msgspec.Struct, array_like=True, gc=False):
    """[box, text, score]; versions that wrote words as well appended more."""

    box: _Points
    text: str
    score: float | str | None = None


class _Item(msgspec.Struct, gc=False):
    """What `to_json()` writes for a line."""

    box: _Points
    txt: str
    score: float | None = None


class _Word(msgspec.Struct, array_like=True, gc=False):
    text: str
    score: float | None
    box: _Points | None


class _Output(msgspec.Struct, gc=False):
    """`RapidOCROutput`, its arrays as lists; all None where nothing was found."""

    boxes: list[_Points] | None
    txts: list[str] | None
    scores: list[float] | None = None
    word_results: list[list[_Word]] | None = None


def _fits(content: Glimpse) -> bool:
    if content.length is None:
        return "boxes" in content.keys and "txts" in content.keys
    line = content.at(0)
    if line is None:
        return False
    item = "txt" in line.keys and "box" in line.keys
    return item or any(
        part is not None and part.is_text for part in (content.at(0, 1), content.at(0, 0, 1))
    )


def _collect(content: Any, document: Builder) -> None:
    page = document.page()
    if isinstance(content, _Output):
        _collect_output(content, page, document)
        return
    lines = content[0] if isinstance(content, tuple) else content
    for number, line in enumerate(lines or ()):
        if isinstance(line, _Item):
            page.points(line.txt, line.box, line.score, number)
        else:
            page.points(line.text, line.box, _score(line.score), number)


def _collect_output(output: _Output, page: PageBuilder, document: Builder) -> None:
    boxes, texts = output.boxes or [], output.txts or []
    scores = output.scores or [None] * len(texts)
    document.same_length({"boxes": boxes, "txts": texts, "scores": scores})
    words = output.word_results or []
    for number, (box, text, score) in enumerate(zip(boxes, texts, scores, strict=True)):
        own = words[number] if number < len(words) else []
        if own and all(word.box for word in own):
            for word in own:
                page.points(word.text, word.box or (), word.score, number)
        else:
            page.points(text, box, score, number)


def _score(score: float | str | None) -> float | None:
    try:
        return None if score is None else float(score)
    except ValueError:
        return None


FORMAT = Format(
    "rapidocr", "RapidOCR's output", _fits, _collect,
    (_Output, list[_Item], list[_Line], tuple[list[_Line] | None, Any]),
)  # fmt: skip
