"""One request through the entrance: to a replica, to another if that one fails, and back.

An answer goes out as soon as it cannot be taken back: events at once, everything else when it is
whole. Until then a replica may die and another is asked. After the first event a dead replica ends
the stream with an error event and `[DONE]`, as a single server does when its engine dies.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

import msgspec
from starlette.types import Send

from turret_server.api.error_responses import error_body, error_response
from turret_server.errors import EngineUnavailable, TurretError
from turret_server.scaleout.wire import Accepted, Forwarded, Head, Headers, Item

REPLICA_HEADER = b"x-turret-replica"
_MAX_TRIES = 3
_UNAVAILABLE = 503  # the engine of this replica starts, or drains; another's may not

log = logging.getLogger("turret.scaleout")

Ask = Callable[[Forwarded], AsyncGenerator[Item]]


class ReplicaLost(Exception):
    """A replica died, or could not be reached, before its answer was whole."""


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that is no stream."""

    status: int
    headers: Headers
    body: bytes

    @classmethod
    def of_error(cls, error: TurretError) -> Whole:
        """What a client is told of an error."""
        response = error_response(error)
        return cls(response.status_code, tuple(response.raw_headers), bytes(response.body))

    async def send(self, send: Send) -> None:
        """Send it to the client."""
        headers = [item for item in self.headers if item[0] != b"content-length"]
        headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


class Relay:
    """Passes requests to replicas.

    Args:
        ask: sends a request to the replica that suits it and yields what comes back; raises
            ReplicaLost.
        accept_s: how long a request may wait for a replica that takes it.
    """

    def __init__(self, ask: Ask, accept_s: float) -> None:
        self._ask = ask
        self._accept_s = accept_s

    async def fetch(self, request: Forwarded, send: Send) -> Whole | None:
        """Ask until there is an answer.

        Args:
            request: to be answered.
            send: where events go.

        Returns:
            The answer, for the caller to send; None for a stream, which has been sent.
        """
        found = Whole.of_error(_lost())
        for _ in range(_MAX_TRIES if _may_be_repeated(request) else 1):
            attempt = _Attempt(send, self._accept_s)
            try:
                answer = await attempt.run(self._ask(request))
            except ReplicaLost:
                if attempt.streaming:
                    await attempt.end_with(_lost())
                    return None
            except TimeoutError:
                return Whole.of_error(_nobody(self._accept_s))
            except Exception:  # who asked gets an answer, whatever went wrong
                log.exception("the answer to %s failed", request.method)
                if not attempt.streaming:
                    return Whole.of_error(_fault())
                await attempt.end_with(_fault())
                return None
            else:
                if answer is None or answer.status != _UNAVAILABLE:
                    return answer
                found = answer
            request = replace(request, avoid=request.avoid | {attempt.replica})
        return found


class _Attempt:
    """One request at one replica."""

    def __init__(self, send: Send, accept_s: float) -> None:
        self._send = send
        self._accept_s = accept_s
        self.replica = ""
        self.streaming = False  # the client has the head

    async def run(self, items: AsyncGenerator[Item]) -> Whole | None:
        """The answer; None if it was a stream.

        Raises:
            TimeoutError: no replica took the request.
            ReplicaLost: the one that did is gone.
        """
        async with aclosing(items):
            async with asyncio.timeout(self._accept_s):
                accepted = await anext(items, None)
            if isinstance(accepted, Accepted):
                self.replica = accepted.replica  # also of one that dies before its answer
            head = await anext(items, None)
            if not self.replica or not isinstance(head, Head):
                raise ReplicaLost("the replica ended without an answer")
            # Ray's proxy adds the request id by itself.
            kept = [item for item in head.headers if item[0] != b"x-request-id"]
            headers = (*kept, (REPLICA_HEADER, self.replica.encode()))
            if not head.is_stream:
                chunks = [chunk async for chunk in items if isinstance(chunk, bytes)]
                return Whole(head.status, headers, b"".join(chunks))
            async for chunk in items:
                if not self.streaming:
                    self.streaming = True
                    await self._send(
                        {
                            "type": "http.response.start",
                            "status": head.status,
                            "headers": list(headers),
                        }
                    )
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return None

    async def end_with(self, error: TurretError) -> None:
        """End a stream that the client has the beginning of."""
        event = b"data: " + msgspec.json.encode(error_body(error)) + b"\n\ndata: [DONE]\n\n"
        await self._send({"type": "http.response.body", "body": event, "more_body": False})


def _may_be_repeated(request: Forwarded) -> bool:
    """Generating twice harms nobody; making a key twice might."""
    return request.method in ("GET", "HEAD") or not request.route.startswith("/v1/admin")


def _lost() -> EngineUnavailable:
    return EngineUnavailable(
        "the answer was not finished",
        "the replica that worked on it is gone",
        "Send the request again.",
    )


def _fault() -> TurretError:
    return TurretError(
        "the server failed to answer",
        "this is a fault of the server, not of the request",
        "Report it with the time of the request.",
    )


def _nobody(waited_s: float) -> EngineUnavailable:
    return EngineUnavailable(
        "no replica takes requests",
        f"none did for {waited_s:g} s: they are starting, or all are gone",
        "Try again in a moment.",
    )
