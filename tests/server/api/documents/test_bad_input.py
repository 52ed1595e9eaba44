"""What is wrong with documents: each a named refusal, and none disturbs what else is served."""

from __future__ import annotations

import io
import zlib

import pytest
from PIL import Image
from tests.server.api.documents.conftest import (
    QUESTION,
    ROWS,
    base64_of,
    document,
    page_of,
    picture,
)

from turret_server.api.documents.settings import DocumentSettings
from turret_server.pipeline.documents.ocr import PictureSettings
from turret_server.tenancy.service import Tenancy, static_keys

WHERE = "messages[0].content[0]"


def image(data, kind="png"):
    text = base64_of(data) if isinstance(data, bytes) else data
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{text}"}}


def file(data):
    return {"type": "file", "file": {"file_data": base64_of(data), "filename": "scan.pdf"}}


def refused(answer, status, param, words):
    error = answer.json["error"]
    assert answer.status == status, error
    assert error["param"] == param, error
    assert words in f"{error['what']}: {error['why']}. {error['fix']}", error
    assert error["what"]


PARTS = [
    ({"type": "document"}, 400, f"{WHERE}.document", "is missing"),
    ({"type": "document", "document": {}}, 400, f"{WHERE}.document", "either 'data' or 'url'"),
    (document(url="http://a.b/c"), 400, f"{WHERE}.document", "either 'data' or 'url'"),
    (document(5), 400, f"{WHERE}.document", "an object, an array or a string"),
    (document(formt="textract"), 400, f"{WHERE}.document.formt", "not known"),
    (document(format=5), 400, f"{WHERE}.document.format", "string"),
    ({"type": "image_url", "image_url": "x"}, 400, f"{WHERE}.image_url", "dictionary"),
    ({"type": "image_url", "image_url": {}}, 400, f"{WHERE}.image_url.url", "missing"),
    ({"type": "file", "file": {}}, 400, f"{WHERE}.file", "missing"),
    ({"type": "file", "file": {"file_id": "a"}}, 422, f"{WHERE}.file.file_id", "stores no files"),
    ({"type": "input_text", "text": "x"}, 400, WHERE, "Responses API"),
    ({"type": "input_image", "image_url": "x"}, 400, WHERE, "image_url"),
    ({"type": "input_file", "file_data": "x"}, 400, WHERE, "file_data"),
    ({"type": "input_audio", "input_audio": {}}, 400, WHERE, "input_audio"),
    ({"type": "video_url"}, 400, WHERE, "video_url"),
    (document("%%%"), 400, f"{WHERE}.document.data", "base64"),
    (document("AAA"), 400, f"{WHERE}.document.data", "base64"),
    (document("QUJD=QUJD"), 400, f"{WHERE}.document.data", "base64"),
    (document("naïve"), 400, f"{WHERE}.document.data", "base64"),
    (document("data:text/xml,<a/>"), 400, f"{WHERE}.document.data", "data URL"),
    (image("????"), 400, f"{WHERE}.image_url.url", "base64"),
    (image(""), 400, f"{WHERE}.image_url.url", "empty"),
    (document("https://example.com/a.png"), 400, f"{WHERE}.document.data", "fetches nothing"),
    (document("<unknown/>"), 400, f"{WHERE}.document.data", "not recognised"),
    (document({"some": "json"}), 400, f"{WHERE}.document.data", "not recognised"),
    (document(format="textract"), 400, f"{WHERE}.document.data", "Textract"),
    (document(format="nonsense"), 400, f"{WHERE}.document.data", "no OCR format"),
    (document({"words": ["a"]}, format="words"), 400, f"{WHERE}.document.data", "box"),
    (document({"words": ["a"], "boxes": []}), 400, f"{WHERE}.document.data", "0 boxes"),
    (document('{"words": ["a"], "boxes": [[0, 0, NaN, 1]]}'), 400, f"{WHERE}.document.data", ""),
    (document({"words": ["a"], "boxes": [[0, 0, 1e300, 1]]}), 400, f"{WHERE}.document.data", "a"),
    (document({"words": [], "boxes": []}), 422, f"{WHERE}.document.data", "no text"),
    (document("[" * 5000), 400, f"{WHERE}.document.data", ""),
]


@pytest.mark.parametrize(("part", "status", "param", "words"), PARTS)
async def test_parts(ask, engine, client, part, status, param, words):
    refused(await ask(part), status, param, words)
    assert engine.requests == []
    assert client.app.state.service.admission.waiting == 0


LAYOUTS = [
    ({"task": "nope"}, 400, "layout.task", "docvqa"),
    ({"mode": "nope"}, 400, "layout.mode", ""),
    ({"mod": "latin"}, 400, "layout.mod", "no such field"),
    ({"pages": []}, 400, "layout.pages", "1 item"),
    ({"pages": [0]}, 400, "layout.pages[0]", ""),
    ({"pages": [2]}, 400, "layout.pages", "no page 2"),
    ({"ocr": "perhaps"}, 400, "layout.ocr", ""),
    ({"max_tokens": 0}, 400, "layout.max_tokens", ""),
    ({"max_tokens": 1}, 400, "layout.max_tokens", "too few for any line. Raise it"),
    ({"order": "random"}, 400, "layout.order", ""),
    ({"fields": ["a"]}, 400, "layout.fields", "names no task"),
    ({"task": "docvqa", "fields": ["a"]}, 400, "layout.fields", "no fields"),
    ({"task": "key-values", "fields": []}, 400, "layout.fields", "none"),
    ({"task": "key-values", "fields": {"type": "string"}}, 400, "layout.fields", "object"),
]


@pytest.mark.parametrize(("layout", "status", "param", "words"), LAYOUTS)
async def test_options(ask, layout, status, param, words):
    refused(await ask(document(), layout=layout), status, param, words)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
async def test_what_cannot_be_answered_page_by_page(ask, fields, param):
    answer = await ask(document(), layout={"task": "mp-docvqa-by-page"}, **fields)
    refused(answer, 400, param, "every page by itself")


async def test_options_without_a_document(client):
    answer = await client.chat("Hi", layout={"cite": True})
    refused(answer, 400, "layout", "carries a document")


async def test_a_task_without_a_question(client):
    body = {"messages": [{"role": "user", "content": [document()]}], "layout": {"task": "docvqa"}}
    answer = await client.post("/v1/chat/completions", body)
    refused(answer, 400, "messages", "question is missing")


async def test_a_document_of_the_assistant(client):
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [document()]},
        {"role": "user", "content": "Well?"},
    ]
    answer = await client.post("/v1/chat/completions", {"messages": messages})
    refused(answer, 400, "messages[1].content[0]", "assistant")


async def test_pages_of_several_documents(ask):
    answer = await ask(document(), document(), layout={"pages": [1]})
    refused(answer, 400, "layout.pages", "2 documents")


async def test_a_conversation_that_does_not_fit_beside_its_documents(client, engine):
    for text in ("word " * 3000, "x" * 3_000_000):
        content = [document(), {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        answer = await client.post("/v1/chat/completions", {"messages": messages})
        refused(answer, 400, "messages", "without its documents")
    assert engine.requests == []


async def test_documents_elsewhere_are_pointed_to_the_right_place(client):
    body = {"messages": [{"role": "user", "content": [document()]}]}
    answer = await client.post("/tokenize", body)
    refused(answer, 400, WHERE, "/v1/layout")
    refused(await client.chat(documents=[1]), 400, "documents", "parts of messages")


@pytest.fixture
def tight(make_client):
    """Small limits."""
    pictures = PictureSettings(workers=1, max_pixels=100_000, max_pages=2)
    return make_client(documents=DocumentSettings(max_pages=2, max_words=10, pictures=pictures))


async def post(client, *parts, **fields):
    messages = [{"role": "user", "content": [*parts, QUESTION]}]
    return await client.post("/v1/chat/completions", {"messages": messages, **fields})


async def test_limits(tight):
    long = page_of([[str(i), "x"] for i in range(6)])
    answer = await post(tight, document(long))
    refused(answer, 413, f"{WHERE}.document.data", "10 are allowed")
    answer = await post(tight, document({"pages": [page_of(ROWS[:1], n) for n in (1, 2, 3)]}))
    refused(answer, 413, f"{WHERE}.document.data", "2 are allowed")
    small = document(page_of(ROWS[:1]))
    assert (await post(tight, small, small, small)).status == 413


def bomb() -> bytes:
    """A PNG of 900 megapixels in less than a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + check.to_bytes(4, "big")

    size = (30_000).to_bytes(4, "big") * 2
    rows = zlib.compress(bytes(3751) * 30_000, 9)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x01\0\0\0\0")
    return head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pdf(pages: int) -> bytes:
    sheets = [Image.new("RGB", (50, 50), "white") for _ in range(pages)]
    out = io.BytesIO()
    sheets[0].save(out, "PDF", save_all=True, append_images=sheets[1:])
    return out.getvalue()


async def test_hostile_files(tight, engine):
    """In one test: the process that reads them takes a second to start."""
    engine.text("Fine.")
    url, data = f"{WHERE}.image_url.url", f"{WHERE}.file.file_data"
    refused(await post(tight, image(bomb())), 413, url, "pixels")
    refused(await post(tight, image(picture()[:60])), 400, url, "damaged")
    refused(await post(tight, image(b"<svg xmlns='x'/>" + b"\0" * 9, "svg")), 422, url, "SVG")
    refused(await post(tight, file(pdf(3))), 413, data, "pages")
    refused(await post(tight, file(b"%PDF-1.7 nothing more")), 400, data, "PDF")
    refused(await post(tight, file(b"PK\x03\x04\0\0")), 422, data, "ZIP")
    refused(await post(tight, file(bytes(100))), 400, data, "neither")
    both = document(base64_of(picture()), format="textract")
    refused(await post(tight, both), 400, f"{WHERE}.document.data", "it is a file")
    absent = await post(tight, file(pdf(1)), layout={"pages": [2]})
    refused(absent, 400, "layout.pages", "no page 2")
    refused(await post(tight, file(pdf(1)), layout={"ocr": "never"}), 422, data, "no text")
    assert (await post(tight, document())).status == 200
    assert (await tight.chat("Hi")).status == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "nope"}, 404),
        ({"max_tokens": 10**6}, 400),
        ({"min_tokens": 50, "max_tokens": 5}, 400),
        ({"timeout_s": 80_000}, 400),
        ({"guided_regex": "("}, 400),
        ({"stop_token_ids": [2**30]}, 400),
        ({"chat_template_kwargs": {"messages": 1}}, 400),
    ],
)
async def test_nothing_is_read_for_a_request_that_is_refused(
    ask, client, monkeypatch, fields, status
):
    async def read(*_):
        raise AssertionError

    monkeypatch.setattr(client.app.state.service.documents, "read", read)
    assert (await ask(document(), **fields)).status == status


async def test_nothing_is_read_when_too_many_wait(ask, client, monkeypatch):
    async def read(*_):
        raise AssertionError

    monkeypatch.setattr(client.app.state.service.documents, "read", read)
    client.app.state.service.admission.waiting = 10**6
    assert (await ask(document())).json["error"]["code"] == "server_overloaded"
    client.app.state.service.admission.waiting = 0
    client.app.state.service.admission.draining = True
    assert (await ask(document())).status == 503


async def test_nothing_is_read_without_a_key(make_client):
    client = make_client(tenancy=Tenancy(static_keys(["secret"], [])))
    assert (await client.post("/v1/layout", b"never parsed")).status == 401


async def test_a_word_far_off_its_page_is_named(ask):
    boxes = [[0, 0, 10, 10], [9e6, 0, 9e6, 10]]
    page = {"words": ["a", "b"], "boxes": boxes, "width": 100, "height": 100}
    refused(await ask(document(page)), 400, f"{WHERE}.document.data", "'b'")
