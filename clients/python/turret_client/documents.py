"""Documents in requests, and what the server tells about them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from turret_client.parsing import invalid, parse

Document = str | PathLike[str] | bytes | Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True, slots=True)
class Citation:
    """Words of a page that an answer rests on.

    Attributes:
        start: first character of the answer that they stand for.
        end: the character after the last.
        document: its place in the request, from 0.
        page: its number in the document, from 1.
        words: numbers of the words on the page, from 0.
        text: of the words.
        box: left, top, right and bottom around them.
        unit: of the box: "px", "pt", "inch", "mm", or "relative" to the page.
        score: 1 where the letters are the same, less where some differ.
    """

    start: int
    end: int
    document: int
    page: int
    words: tuple[int, ...]
    text: str
    box: tuple[float, ...]
    unit: str
    score: float


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a page: `quad` holds x and y of its corners, [start, end) its place in the text.

    A word that the text leaves out has `start` -1.
    """

    text: str
    quad: tuple[float, ...]
    start: int
    end: int
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page as text: spaces and line breaks keep the layout.

    Attributes:
        page: its number, from 1.
        text: what a prompt would show.
        num_words: read on the page.
        width: of the page, in its unit.
        height: of the page, in its unit.
        unit: as for a `Citation`.
        words: if they were asked for, with `boxes=True`.
    """

    page: int
    text: str
    num_words: int
    width: float
    height: float
    unit: str
    words: tuple[Word, ...] = ()


def document(source: Document) -> dict[str, Any]:
    """A document as a part of a message.

    Args:
        source: path of a file (picture, PDF, OCR result), its bytes, or an OCR result as the JSON
            object or array that it is. A URL that the server may fetch from starts with "http".

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return {"type": "document", "document": {"url": source}}
    if isinstance(source, str | PathLike):
        source = Path(source).read_bytes()
    data = base64.b64encode(source).decode() if isinstance(source, bytes) else source
    return {"type": "document", "document": {"data": data}}


def question(text: str, documents: Sequence[Document]) -> list[dict[str, Any]]:
    """A conversation that asks about documents."""
    parts = [*map(document, documents), {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def layout_body(source: Document, params: Mapping[str, Any]) -> dict[str, Any]:
    """The body of POST /v1/layout."""
    return {"document": document(source)["document"], **params}


def parse_pages(body: Any) -> tuple[Page, ...]:
    """The pages of a layout.

    Raises:
        InvalidAnswer: it is none.
    """
    if not isinstance(body, dict) or not isinstance(body.get("pages"), list):
        raise invalid("it does not hold a layout")
    return tuple(_page(page) for page in body["pages"])


def _page(body: Any) -> Page:
    if not isinstance(body, dict):
        raise invalid("it does not hold a Page")
    return parse(Page, {**body, "words": [parse(Word, word) for word in body.get("words") or ()]})
