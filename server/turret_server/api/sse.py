r"""Server-sent events, written straight to the ASGI connection.

Framing follows what clients were seen to need: events end in `\n\n`, the stream in
`data: [DONE]`, an error is an event of its own, and comments keep silent connections open. The
response starts with its first event, so that a request which fails before it has an answer gets
a proper status.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from turret_server.api.disconnect import ClientDisconnected, or_disconnect
from turret_server.api.error_responses import error_body
from turret_server.errors import TurretError
from turret_server.telemetry.logging import log_unexpected
from turret_server.telemetry.record import RequestRecord

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events into blocks
]
_DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"


class EventStream(Response):
    """A response of server-sent events.

    Args:
        events: complete events, ending in a blank line.
        held: what the request holds; closed when the stream ends, however it does.
        record: of the request.
        ping_s: a silent stream gets a comment this often.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        held: AbstractContextManager[object],
        record: RequestRecord,
        ping_s: float,
    ) -> None:
        super().__init__()
        self._events = events
        self._held = held
        self._record = record
        self._ping_s = ping_s
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop when the client leaves."""
        with self._held:
            try:
                await or_disconnect(receive, self._run(_noticing(send)))
            except ClientDisconnected:
                self._record.disconnected = True

    async def _run(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = asyncio.ensure_future(anext(events))
            try:
                await asyncio.wait({first}, timeout=self._ping_s)
                if first.done():
                    first.result()  # an error before the first token becomes a status
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                pinging = asyncio.create_task(self._ping(send))
                try:
                    await self._send_all(first, events, send)
                finally:
                    pinging.cancel()
            finally:
                if not first.done():
                    first.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Exception):
                        await first
                elif not first.cancelled():
                    first.exception()  # seen; to await it again would lose where it came from
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})

    async def _send_all(
        self, first: asyncio.Future[bytes], events: AsyncGenerator[bytes], send: Send
    ) -> None:
        now = asyncio.get_running_loop().time
        try:
            if not first.done():
                await send(_body(_PING))
            self._sent_at = now()
            await send(_body(await first))
            async for event in events:
                self._sent_at = now()
                await send(_body(event))
        except ClientDisconnected:
            raise
        except TurretError as error:
            await self._send_error(error, send)
        except Exception as error:  # whatever it was: the stream ends with an error event
            log_unexpected(self._record, error)
            await self._send_error(
                TurretError(
                    "the server failed to go on",
                    "this is a fault of the server, not of the request",
                    f"Report it with the request id {self._record.id}.",
                ),
                send,
            )

    async def _send_error(self, error: TurretError, send: Send) -> None:
        self._record.error = error
        await send(_body(b"data: " + msgspec.json.encode(error_body(error)) + b"\n\n"))

    async def _ping(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            silent = loop.time() - self._sent_at
            await asyncio.sleep(max(self._ping_s - silent, 0.05))
            if loop.time() - self._sent_at >= self._ping_s:
                self._sent_at = loop.time()
                await send(_body(_PING))


def _noticing(send: Send) -> Send:
    """`send`, saying plainly that the client is gone where the server says OSError."""

    async def noticing(message: Message) -> None:
        try:
            await send(message)
        except OSError as error:
            raise ClientDisconnected from error

    return noticing


def _body(data: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": True}
