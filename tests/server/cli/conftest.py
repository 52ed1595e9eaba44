"""A small Turret-like server in a thread; the model name of a chat picks how its answer ends."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

CITATION = {
    "start": 0,
    "end": 4,
    "document": 0,
    "page": 1,
    "words": [1],
    "text": "Four",
    "box": [60, 10, 90.5, 20],
    "unit": "px",
    "score": 1.0,
}
LAID_OUT = {
    "page": 1,
    "width": 200,
    "height": 100,
    "unit": "px",
    "text": "Total  Four",
    "num_words": 2,
    "words": [
        {"text": "Total", "quad": [10, 10, 50, 10, 50, 20, 10, 20], "start": 0, "end": 5},
        {"text": "Four", "quad": [60, 10, 90, 10, 90, 20, 60, 20], "start": 7, "end": 11},
    ],
}


@dataclass
class Asked:
    """One request as it came in."""

    method: str
    path: str
    authorization: str | None
    body: Any


@dataclass
class FakeServer:
    """What a test sees of the server, and says about its answers."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    cards: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"id": "base", "kind": "base", "root": "demo"},
            {"id": "formal-sql", "kind": "recipe", "root": "formal:0.7+sql"},
            {"id": "formal", "kind": "lora", "root": "/adapters/formal"},
            {"id": "sql", "kind": "lora", "root": "/adapters/sql"},
        ]
    )
    pieces: list[str] = field(default_factory=lambda: ["Four", ",\n", "of course."])
    left: threading.Event = field(default_factory=threading.Event)

    def bodies(self, path: str) -> list[Any]:
        return [asked.body for asked in self.asked if asked.path == path]


def _error(status: int, what: str, why: str = "why", fix: str = "fix") -> web.Response:
    message = f"{what}: {why}. {fix}"
    return web.json_response(
        {"error": {"message": message, "what": what, "why": why, "fix": fix}}, status=status
    )


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _delta(text: str, finish: str | None = None) -> bytes:
    return _event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def _app(fake: FakeServer) -> web.Application:
    async def record(request: web.Request) -> Any:
        text = await request.text()
        body = json.loads(text) if text else None
        key = request.headers.get("Authorization")
        fake.asked.append(Asked(request.method, request.path, key, body))
        return body

    async def models(request: web.Request) -> web.Response:
        await record(request)
        return web.json_response({"object": "list", "data": fake.cards})

    async def model(request: web.Request) -> web.Response:
        await record(request)
        name = request.match_info["name"]
        known = {card["id"] for card in fake.cards}
        if {part.partition(":")[0] for part in name.split("+")} <= known:
            return web.json_response({"id": name})
        return _error(404, f"the model {name!r} does not exist", fix="Did you mean 'sql'?")

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await record(request)
        match body["model"]:
            case "busy":
                return _error(429, "the server is overloaded")
            case "locked":
                return _error(401, "there is no API key", fix="Send a header.")
            case "openai":
                error = {"error": {"message": "no such model", "code": None}}
                return web.json_response(error, status=404)
            case "proxy":
                return web.Response(status=502, text="<html>bad gateway</html>")
            case "html":
                return web.Response(text="data: <html>\n\n")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in fake.pieces:
            await response.write(_delta(piece))
        match body["model"]:
            case "endless":
                try:
                    while True:
                        await response.write(_delta(" and on"))
                        await asyncio.sleep(0.01)
                except (ConnectionError, asyncio.CancelledError):
                    fake.left.set()
                    raise
            case "cut":
                return response
            case "dying":
                error = {"what": "the engine died", "why": "it was killed", "fix": "Ask again."}
                await response.write(_event({"error": error}))
            case "long":
                await response.write(_delta("", "length"))
            case "citing":
                last = {"index": 0, "delta": {"citations": [CITATION]}, "finish_reason": "stop"}
                dropped = [{"document": 0, "page": 2}]
                layout = {"pages": 2, "dropped_pages": dropped}
                await response.write(_event({"choices": [last], "layout": layout}))
            case _:
                await response.write(_delta("", "stop"))
        usage = {"prompt_tokens": 31, "completion_tokens": 7}
        await response.write(_event({"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def layout(request: web.Request) -> web.Response:
        await record(request)
        return web.json_response({"object": "layout", "pages": [LAID_OUT]})

    async def adapters(request: web.Request) -> web.Response:
        await record(request)
        return web.json_response({"object": "list", "data": [_card("sql", "/adapters/sql")]})

    async def put(request: web.Request) -> web.Response:
        body = await record(request)
        if body.get("path") == "/etc":
            return _error(403, "the path '/etc' is not allowed")
        return web.json_response(
            _card(request.match_info["name"], body.get("path", "")), status=201
        )

    async def delete(request: web.Request) -> web.Response:
        await record(request)
        name = request.match_info["name"]
        if name != "sql":
            return _error(404, f"the adapter {name!r} is not loaded")
        return web.json_response({"id": name, "deleted": True})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_get("/v1/models/{name:.+}", model)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/layout", layout)
    app.router.add_get("/v1/adapters", adapters)
    app.router.add_put("/v1/adapters/{name}", put)
    app.router.add_delete("/v1/adapters/{name}", delete)
    return app


def _card(name: str, path: str) -> dict[str, Any]:
    return {
        "id": name,
        "kind": "lora",
        "digest": "0123456789abcdef",
        "path": path,
        "rank": 8,
        "targets": ["q_proj", "v_proj"],
        "num_parameters": 4096,
        "num_bytes": 8192,
        "resident": True,
        "tier": "device",
        "pinned": True,
        "source": path,
    }


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server on a free port, in an event loop of its own."""
    fake = FakeServer()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(_app(fake), handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        fake.url = f"http://{host}:{port}"
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield fake
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the options nor the width of the one who runs the tests."""
    for name in ("TURRET_URL", "TURRET_API_KEY", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
