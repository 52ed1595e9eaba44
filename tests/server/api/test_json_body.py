from __future__ import annotations

import asyncio
import time

import pytest

from turret_server.api import json_body
from turret_server.api.json_body import too_deep
from turret_server.errors import RequestTimeout

BODY = b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":1}'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"[]", False),
        (b"[" * 64 + b"]" * 64, False),
        (b"[" * 65 + b"]" * 65, True),
        (b'{"a":' * 65 + b"1" + b"}" * 65, True),
        (b'["' + b"[" * 100 + b'"]', False),  # brackets in a string are text
        (b'["\\"' + b"[" * 100 + b'"]', False),
        (b'["\\\\",' + b"[" * 65 + b"]" * 65 + b"]", True),
        (b"[" + b"[1]," * 10_000 + b"[1]]", False),
        (b"[" * 100, True),  # unbalanced: never parsed
        (b"[{" * 33 + b"]}" * 33, True),
    ],
)
def test_depth(body, expected):
    assert too_deep(body, 64) is expected


@pytest.mark.parametrize(
    "body",
    [b"[" * 8_000_000, b"[]" * 4_000_000, b'"' * 8_000_001, b'{"a":' * 1_000_000, b"[{}," * 10**6],
)
def test_hostile_bodies_take_no_time(body):
    began = time.process_time()
    too_deep(body, 64)
    assert time.process_time() - began < 1.0  # 8 MB; quadratic work would take hours


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}x",
        b"{'a': 1}",
        b'{"messages": NaN}',
        b'{"messages": 1e999}',
        b'{"model": "\\ud800"}',
        b'{"model": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
)
async def test_what_is_not_a_json_object(client, body):
    answer = await client.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.json["error"]["param"] is None
    assert answer.json["error"]["what"].startswith("the body is ")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_that_is_not_declared_to_be_json(client, kind):
    # Browsers send these across origins without asking first.
    answer = await client.post("/v1/chat/completions", BODY, {"content-type": kind})
    assert answer.status == 415
    assert "application/json" in answer.json["error"]["fix"]


async def test_a_charset_is_allowed(client):
    kind = {"content-type": "application/json; charset=utf-8"}
    assert (await client.post("/v1/chat/completions", BODY, kind)).status == 200


async def test_a_declared_size_above_the_limit(make_client):
    client = make_client(max_body_bytes=100)
    answer = await client.post("/v1/completions", b"x", {"content-length": "101"})
    assert answer.status == 413
    assert answer.json["error"]["code"] == "payload_too_large"


async def test_a_real_size_above_the_limit(make_client):
    client = make_client(max_body_bytes=100)
    assert (await client.post("/v1/completions", b" " * 101)).status == 413
    # Chunked, or lying: what counts is what arrives.
    answer = await client.post("/v1/completions", b" " * 101, {"content-length": "5"})
    assert answer.status == 413
    assert (await client.post("/v1/completions", BODY[:10] + b" " * 90)).status == 400


async def test_a_body_that_trickles(make_app, monkeypatch):
    monkeypatch.setattr(json_body, "_BODY_GRACE_S", 0.1)
    sent = 0

    async def receive():
        nonlocal sent
        sent += 1
        await asyncio.sleep(0.03 * (sent > 1))  # the first byte comes at once
        return {"type": "http.request", "body": b"[", "more_body": True}

    scope = {"type": "http", "headers": [], "app": make_app()}
    with pytest.raises(RequestTimeout, match=r"bytes came in 0 seconds"):
        await json_body.JsonRequest(scope, receive).body()
    assert 1 < sent < 8
