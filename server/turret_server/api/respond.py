"""How an answer goes out: whole or as a stream, in either case only while the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any, Protocol

import msgspec
from fastapi import Request, Response

from turret_server.api.disconnect import ClientDisconnected, or_disconnect
from turret_server.api.sse import EventStream
from turret_server.telemetry.record import record_of


class Answer(Protocol):
    """A prepared generation that knows how to be written down."""

    async def collect(self) -> dict[str, Any]:
        """Run to the end and return the response."""
        ...

    def stream(self) -> AsyncGenerator[bytes]:
        """Run and yield one event per token."""
        ...


async def respond(
    answer: Answer, request: Request, held: ExitStack, *, stream: bool, ping_s: float
) -> Response:
    """Run an answer and send it.

    Args:
        answer: not yet running.
        request: that it answers.
        held: what the request holds; closed when the answer has ended, however it did.
        stream: send events.
        ping_s: see `EventStream`.
    """
    record = record_of(request.scope)
    if stream:
        return EventStream(answer.stream(), held, record, ping_s)
    with held:
        try:
            body = await or_disconnect(request.receive, answer.collect())
        except ClientDisconnected:
            record.disconnected = True
            return Response(status_code=499)  # nobody reads it
    return Response(await _json(body), media_type="application/json")


async def _json(body: dict[str, Any]) -> bytes:
    """One choice after the other: a hundred with log-probabilities take seconds."""
    choices: list[msgspec.Raw] = []
    for choice in body["choices"]:
        choices.append(msgspec.Raw(msgspec.json.encode(choice)))
        await asyncio.sleep(0)
    return msgspec.json.encode(body | {"choices": choices})
