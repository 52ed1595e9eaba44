"""Runs an ASGI app for a request that came as a whole, and yields the answer as it grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message

from turret_server.scaleout.wire import Forwarded, Head

_unfinished: set[asyncio.Task[None]] = set()  # the loop itself keeps weak references only


def scope_of(request: Forwarded) -> MutableMapping[str, Any]:
    """The ASGI scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.route,
        "raw_path": request.path,
        "query_string": request.query,
        "root_path": "",
        "headers": list(request.headers),
        "client": request.client,
        "server": None,
        "state": {},
    }


async def run(
    app: ASGIApp,
    scope: MutableMapping[str, Any],
    body: bytes,
    answered: Callable[[int], Awaitable[None]] | None = None,
) -> AsyncGenerator[Head | bytes]:
    """The head of the answer, then its body; what came meanwhile comes as one piece.

    Closing the generator is a client that leaves: the app is told so, and ends by itself.

    Args:
        app: that answers.
        scope: from `scope_of`.
        body: of the request.
        answered: awaited with the status before the head goes out, also where the client has left.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    unread, gone = [body], asyncio.Event()

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if answered is not None and message["type"] == "http.response.start":
            await answered(message["status"])
        messages.put_nowait(message)

    async def serve() -> None:
        try:
            await app(scope, receive, send)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(serve())
    _unfinished.add(task)
    task.add_done_callback(_unfinished.discard)
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                yield Head(message["status"], tuple(message.get("headers", ())))
                continue
            pieces = [message.get("body", b"")]
            while not messages.empty() and (message := messages.get_nowait()) is not None:
                pieces.append(message.get("body", b""))
            if joined := b"".join(pieces):
                yield joined
            if message is None:
                break
    finally:
        gone.set()
