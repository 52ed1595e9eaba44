"""An app whose documents are read in this process, and documents to send to it."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from PIL import Image, ImageDraw
from tests.server.api.conftest import Answer, RawClient

from turret_server.pipeline.documents.layout import lay_out
from turret_server.pipeline.documents.readers import read

ROWS = [["Item", "Amount"], ["Drill", "298.00"], ["Total", "963.60"]]
QUESTION = {"type": "text", "text": "What is the total?"}


class InlineWorkers:
    """`DocumentWorkers` without processes: they take half a second to start."""

    def __init__(self, *options: Any) -> None:
        self.limits = options[3]
        self.read_formats: list[str | None] = []

    async def read(self, data: bytes, format: str | None = None, owner: str = "") -> Any:
        self.read_formats.append(format)
        return read(data, format, self.limits)

    async def lay_out(self, pages: Sequence[Any], options: Any, owner: str = "") -> Any:
        return [lay_out(page, options) for page in pages]

    async def close(self) -> None:
        pass


def page_of(rows: Sequence[Sequence[str]], number: int = 1) -> dict[str, Any]:
    """A page with a table in two columns."""
    words, boxes = [], []
    for y, row in enumerate(rows):
        for x, text in enumerate(row):
            words.append(text)
            left, top = 10 + 200 * x, 10 + 30 * y
            boxes.append([left, top, left + 10 * len(text), top + 15])
    height = 200 + 30 * len(rows)
    return {"words": words, "boxes": boxes, "width": 500, "height": height, "number": number}


TEXT = lay_out(read(msgspec.json.encode(page_of(ROWS)))[0]).text


def document(data: Any = None, **fields: Any) -> dict[str, Any]:
    """A document part; a table by default."""
    return {"type": "document", "document": {"data": data or page_of(ROWS), **fields}}


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def picture(text: str = "") -> bytes:
    """A small PNG; there is nothing to read in it unless OCR finds a text."""
    image = Image.new("RGB", (200, 60), "white")
    ImageDraw.Draw(image).text((10, 10), text, fill="black", font_size=32)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turret_server.api.documents.reader.DocumentWorkers", InlineWorkers)


@pytest.fixture
async def apps() -> AsyncIterator[list[FastAPI]]:
    """Apps whose processes, if they started any, end with the test."""
    made: list[FastAPI] = []
    yield made
    for app in made:
        await app.state.service.documents.close()


@pytest.fixture
def make_client(make_app: Callable[..., FastAPI], apps: list[FastAPI]) -> Callable[..., RawClient]:
    def make(**changes: Any) -> RawClient:
        apps.append(make_app(**changes))
        return RawClient(apps[-1])

    return make


@pytest.fixture
def client(make_client: Callable[..., RawClient]) -> RawClient:
    return make_client()


@pytest.fixture
def ask(client: RawClient) -> Callable[..., Any]:
    """One user message of parts; a question closes it unless parts are given as a list."""

    async def ask(*parts: Any, **fields: Any) -> Answer:
        messages = [{"role": "user", "content": [*parts, QUESTION]}]
        return await client.post("/v1/chat/completions", {"messages": messages, **fields})

    return ask


@pytest.fixture
def prompt_of(engine: Any, tokenizer: Any) -> Callable[..., str]:
    """What the user said, as the model last saw it."""

    def prompt(at: int = -1) -> str:
        text = tokenizer.decode(engine.requests[at].prompt, skip_special_tokens=False)
        return text.split("<|im_start|>user\n")[-1].split("<|im_end|>")[0]

    return prompt
