from __future__ import annotations

import json
import time

import msgspec
import pytest
from tests.server.api.documents.conftest import QUESTION, base64_of, document

from turret_server.api.documents.body import parse_document_body
from turret_server.errors import BadRequest, PayloadTooLarge


def parse(body, max_rest_bytes=1000, max_depth=10):
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return parse_document_body(data, max_rest_bytes=max_rest_bytes, max_depth=max_depth)


def message(*parts):
    return {"model": "demo", "messages": [{"role": "user", "content": list(parts)}]}


def test_json_of_documents_is_left_as_it_stands():
    parts = parse(message(document({"Blocks": [{"Id": "é\n"}]}), QUESTION))["messages"][0][
        "content"
    ]
    raw = parts[0]["document"]["data"]
    assert isinstance(raw, msgspec.Raw)
    assert json.loads(bytes(raw)) == {"Blocks": [{"Id": "é\n"}]}
    assert parts[1] == QUESTION


@pytest.mark.parametrize(
    "body",
    [
        message(document("<alto/>", format="alto"), QUESTION),
        message({"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}}),
        message({"type": "file", "file": {"file_data": "abc", "filename": "a.pdf"}}),
        {"messages": [{"role": "user", "content": "text"}, {"role": "user"}], "n": 2},
        {"messages": 5},
        {"messages": [3, None, [], {"content": [None, 1, "a", {"document": "x"}]}]},
        {"image_url": {"url": "data:,x"}, "boxes": True},
        {"document": {"data": None}},
        {"document": [1], "messages": {"content": []}},
        {"messages": [{"messages": [{"content": [{"document": {"data": "x"}}]}]}]},
    ],
)
def test_all_else_is_what_a_json_parser_makes_of_it(body):
    assert parse(body) == body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"messages": [}',
        b'{"a": NaN}',
        b'{"messages": [{"content": [{"document": {"data": "\\ud800"}}]}]}',
        b'{"a": 1} x',
        b"\xff",
        b'{"document": {"data": [' + b"[" * 100_000,
        b'{"messages": [{"content": [{"document": {"a": ' + b"[" * 20 + b"]" * 20 + b"}}]}]}",
    ],
)
def test_what_is_not_json_or_too_deep_is_refused(body):
    with pytest.raises(BadRequest):
        parse(body)


def test_documents_do_not_count_into_what_else_a_body_may_hold():
    long = "x" * 5000
    parse(message(document(long), document([long])))
    with pytest.raises(PayloadTooLarge, match="without its documents"):
        parse(message({"type": "text", "text": long}))


def test_a_large_result_is_cut_out_far_faster_than_it_is_parsed():
    word = {"BlockType": "WORD", "Text": "Total", "Geometry": {"BoundingBox": {"Left": 0.25}}}
    body = msgspec.json.encode(message(document({"Blocks": [word] * 60_000})))

    def fastest(work):
        times = []
        for _ in range(3):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
        return min(times)

    assert fastest(lambda: parse(body)) < fastest(lambda: msgspec.json.decode(body)) / 2


async def test_documents_may_be_longer_than_other_bodies(make_client, engine):
    engine.text("Yes.")
    client = make_client(max_body_bytes=20_000)
    padded = json.dumps({"segments": [], "pad": "x" * 100_000})
    answer = await client.post("/v1/layout", {"document": {"data": padded}})
    assert answer.status == 200
    text = {"type": "text", "text": "x" * 100_000}
    answer = await client.post("/v1/chat/completions", message(text))
    assert answer.status == 413
    assert "without its documents" in answer.json["error"]["what"]


async def test_other_routes_take_no_longer_bodies(make_client):
    client = make_client(max_body_bytes=20_000)
    assert (await client.complete("x" * 100_000)).status == 413


async def test_a_body_too_long_for_documents_is_refused_by_its_length(make_client, settings):
    limit = settings.max_body_bytes + settings.documents.max_body_bytes
    answer = await make_client().post("/v1/layout", b"{", {"content-length": str(limit + 1)})
    assert answer.status == 413


async def test_nothing_long_is_read_for_a_request_that_would_wait_in_vain(client):
    client.app.state.service.admission.waiting = 10**6
    body = message(document(base64_of(b"x" * 200_000)))
    answer = await client.post("/v1/chat/completions", body, {"content-length": "300000"})
    assert answer.status == 503
