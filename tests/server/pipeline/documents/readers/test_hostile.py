"""Content made to take time or memory: what it costs grows with its size, not with the square."""

from __future__ import annotations

import time
from typing import Any

import pytest

from turret_server.errors import TurretError
from turret_server.pipeline.documents.readers import read, read_value

_BOUND_S = 4.0  # all take less than a second; with the square of their size they took minutes
WORD = "<span class='ocrx_word' title='bbox 1 2 3 4'>x"


def html(inner: str) -> bytes:
    return f"<html><div class='ocr_page'>{inner}</html>".encode()


def page_of(tokens: int, end: int) -> Any:
    layout = {
        "textAnchor": {"textSegments": [{"endIndex": str(end)}]},
        "boundingPoly": {"normalizedVertices": [{}, {"x": 1}, {"x": 1, "y": 1}, {"y": 1}]},
    }
    return {"dimension": {"width": 9, "height": 9}, "tokens": [{"layout": layout}] * tokens}


FILES = {
    "words in words, XHTML": html(WORD * 20_000 + "</span>" * 20_000 + "</div>"),
    "unclosed comments": html("<!-- >" * 200_000),
    "unclosed sections": html("<![CDATA[>" * 200_000),
    "unclosed tags": html("<p " * 300_000 + ">"),
    "unclosed quotes": html("<p a='>" * 100_000),
    "ends of tags never opened": html("</p>" * 300_000),
    "pages in pages": b"<alto><Layout>" + b"<Page>" * 20_000 + b"</Page>" * 20_000
    + b"</Layout></alto>",
    "blocks in blocks": b"<alto><Layout><Page>" + b"<TextBlock><TextLine/>" * 20_000
    + b"</TextBlock>" * 20_000 + b"</Page></Layout></alto>",
    "regions in regions": b"<PcGts><Page>" + b"<TextRegion>" * 20_000 + b"</TextRegion>" * 20_000
    + b"</Page></PcGts>",
    "a row of a million columns": b"level\tpage_num\t" + b"x\t" * 1_000_000,
    "braces": b"{" * 1_000_000,
    "a long number": b'{"words": ["a"], "boxes": [[1, 2, 3, ' + b"9" * 1_000_000 + b"]]}",
}  # fmt: skip
VALUES: dict[str, Any] = {
    "tokens that are the whole text": {"text": "x" * 200_000, "pages": [page_of(20_000, 200_000)]},
    "lines that are all tokens": {
        "tokens": ["a"] * 20_000,
        "positions": [[0, 0, 1, 1]] * 20_000,
        "structures": {"lines": {"structure_value": [[0, 20_000]] * 20_000}},
    },
    "pages that are all tokens": {
        "tokens": ["a"] * 20_000,
        "positions": [[0, 0, 1, 1]] * 20_000,
        "structures": {"pages": {"structure_value": [[0, 20_000]] * 900}},
    },
    "paragraphs of many pages": {
        "analyzeResult": {
            "pages": [{"pageNumber": i, "words": []} for i in range(900)],
            "paragraphs": [{"spans": [{"offset": 0, "length": 1}]}] * 50_000,
        }
    },
    "lines that name one word": {
        "Blocks": [
            {"BlockType": "LINE", "Text": "", "Geometry": {"BoundingBox": {
                "Left": 0, "Top": 0, "Width": 1, "Height": 1}},
             "Relationships": [{"Type": "CHILD", "Ids": ["a"] * 50}]}
        ] * 5_000
    },
}  # fmt: skip


def cpu_s(call: Any) -> float:
    start = time.process_time()
    try:
        call()
    except TurretError as error:
        assert len(str(error)) < 2000  # noqa: PT017
    return time.process_time() - start


@pytest.mark.parametrize("name", FILES)
def test_files(name: str) -> None:
    assert cpu_s(lambda: read(FILES[name])) < _BOUND_S


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    assert cpu_s(lambda: read_value(VALUES[name])) < _BOUND_S
