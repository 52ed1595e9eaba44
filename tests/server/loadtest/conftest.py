"""A small OpenAI-like server whose faults are chosen by the model name of each request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from turret_server.loadtest.config import LoadConfig, Target


@dataclass
class MockServer:
    """What a test sees of the server: its address and the requests it got."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    num_running: int = 0
    peak_running: int = 0


def _chunk(body: dict[str, Any], text: str, finish: str | None = None) -> bytes:
    piece: dict[str, Any] = {"delta": {"content": text}} if "messages" in body else {"text": text}
    event = {"choices": [{"index": 0, **piece, "finish_reason": finish}]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


async def _stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    model, tokens = body["model"], body["max_tokens"]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if "messages" in body:
        await response.write(b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n')
    for index in range(tokens):
        if index == 1 and model == "disconnect":
            assert request.transport is not None
            request.transport.abort()
            return response
        if index == 1 and model == "hang":
            await asyncio.sleep(30)
        if index == 1 and model == "stream-error":
            await response.write(b'data: {"error":{"message":"engine died"}}\n\ndata: [DONE]\n\n')
            return response
        if index == 1 and model == "malformed":
            await response.write(b"data: {nonsense\n\n")
            return response
        if index == 1 and model == "truncated":
            return response
        last = index == tokens - 1
        await response.write(_chunk(body, f"t{index} ", "length" if last else None))
        await asyncio.sleep(0.001)
    if model != "no-usage":
        usage = {"prompt_tokens": 7, "completion_tokens": tokens}
        event = json.dumps({"choices": [], "usage": usage}).encode()
        await response.write(b"data: " + event + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


@pytest.fixture
async def mock_server() -> AsyncIterator[MockServer]:
    """A running server. Model names other than the faults above are answered well."""
    mock = MockServer()

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        mock.bodies.append(body)
        mock.authorizations.append(request.headers.get("Authorization"))
        if body["model"] == "overloaded":
            return web.json_response({"error": {"message": "queue full"}}, status=429)
        mock.num_running += 1
        mock.peak_running = max(mock.peak_running, mock.num_running)
        try:
            if body.get("stream"):
                return await _stream(request, body)
            tokens = 0 if body["model"] == "empty" else body["max_tokens"]
            choice = {"text": "x" * tokens, "finish_reason": "length"}
            usage = {"prompt_tokens": 7, "completion_tokens": tokens}
            return web.json_response({"choices": [choice], "usage": usage})
        finally:
            mock.num_running -= 1

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "base"}, {"id": "a0"}]})

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", models)
    async with TestServer(app, shutdown_timeout=0) as server:
        mock.url = str(server.make_url("/")).rstrip("/")
        yield mock


@pytest.fixture
def make_config() -> Callable[..., LoadConfig]:
    """Build a small closed-loop configuration; keyword arguments override."""

    def make(*models: str, **overrides: Any) -> LoadConfig:
        settings: dict[str, Any] = {
            "url": "http://127.0.0.1:1",
            "targets": tuple(Target(model=model) for model in models or ("base",)),
            "num_requests": 6,
        }
        if not {"arrivals", "trace", "concurrency"} & set(overrides):
            settings["concurrency"] = 2
        return LoadConfig(**(settings | overrides))

    return make
