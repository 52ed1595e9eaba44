from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.server.api.documents.conftest import ROWS, TEXT, base64_of, document, page_of

from turret_server.api.schema import responses


async def test_the_text_of_each_page(client, engine):
    pages = {"pages": [page_of(ROWS), page_of([["next", "page"]], 2)]}
    answer = await client.post("/v1/layout", {"document": {"data": pages}})
    assert answer.status == 200
    assert answer.json["object"] == "layout"
    assert [page["page"] for page in answer.json["pages"]] == [1, 2]
    assert [page["num_words"] for page in answer.json["pages"]] == [6, 2]
    assert answer.json["num_words"] == 8
    assert answer.json["pages"][0]["text"] == TEXT
    assert "words" not in answer.json["pages"][0]
    assert engine.requests == []


async def test_words_with_their_boxes_and_places(client):
    answer = await client.post("/v1/layout", {"document": {"data": page_of(ROWS)}, "boxes": True})
    (page,) = answer.json["pages"]
    for word in page["words"]:
        assert page["text"][word["start"] : word["end"]] == word["text"]
    assert page["words"][5]["quad"] == [210, 70, 270, 70, 270, 85, 210, 85]
    parsed = responses.Layout.model_validate_json(answer.body, extra="forbid")
    assert msgspec.json.decode(parsed.model_dump_json(exclude_unset=True)) == answer.json


async def test_any_part_can_be_sent(client):
    data = base64_of(msgspec.json.encode(page_of(ROWS)))
    for body in ({"file": {"file_data": data}}, {"image_url": {"url": f"data:x;base64,{data}"}}):
        assert (await client.post("/v1/layout", body)).json["pages"][0]["text"] == TEXT


async def test_options(client):
    body = {"document": {"data": {"pages": [page_of(ROWS), page_of([["b"]], 2)]}}}
    answer = await client.post("/v1/layout", {**body, "mode": "plain", "pages": [1]})
    (page,) = answer.json["pages"]
    assert page["text"] == "Item Amount Drill 298.00 Total 963.60"
    answer = await client.post("/v1/layout", {**body, "format": "alto"})
    assert answer.status == 400
    assert answer.json["error"]["param"] == "document.data"


async def test_a_page_without_words_is_an_empty_text(client):
    body = {"document": {"data": {"words": [], "boxes": []}}}
    assert (await client.post("/v1/layout", body)).json["pages"][0]["text"] == ""


async def test_a_server_that_ends_lays_no_more_documents_out(client):
    client.app.state.service.admission.draining = True
    answer = await client.post("/v1/layout", {"document": {"data": page_of(ROWS)}})
    assert (answer.status, answer.json["error"]["code"]) == (503, "engine_unavailable")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"document": {"data": page_of(ROWS)}, "boxs": True}, "boxs"),
        ({"document": {}}, "document"),
        ({"image_url": {"url": "https://example.com/x.png"}}, "image_url.url"),
        ({"file": {"file_id": "x"}}, "file.file_id"),
    ],
)
async def test_bad_bodies(client, body, param):
    answer = await client.post("/v1/layout", body)
    assert answer.status in (400, 422)
    assert answer.json["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "none is given"),
        ({"document": document()["document"], "file": {"file_data": "x"}}, "2 of them are given"),
    ],
)
async def test_a_body_has_one_document(client, body, why):
    error = (await client.post("/v1/layout", body)).json["error"]
    assert (error["param"], error["why"]) == ("document", why)
    assert "alternatives" in error["what"]


async def test_a_client_that_leaves_ends_the_reading(client, monkeypatch):
    reading, ended = asyncio.Event(), asyncio.Event()

    async def read(*_):
        reading.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    monkeypatch.setattr(client.app.state.service.documents._workers, "read", read)
    leave = asyncio.Event()
    body = {"document": {"data": page_of(ROWS)}}
    call = asyncio.create_task(client.post("/v1/layout", body, leave=leave))
    await reading.wait()
    leave.set()
    await asyncio.wait_for(ended.wait(), 2)
    await call
