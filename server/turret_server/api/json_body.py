"""Reading a request body: bounded in size and depth before anything parses it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute

from turret_server.errors import BadRequest, PayloadTooLarge, RequestTimeout

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# What a body may take: a slow line is served, one that trickles is not.
_BODY_GRACE_S = 30.0
_BODY_BYTES_PER_S = 16 << 10
_NO_BRACKET = bytes(b for b in range(256) if b not in b"[]{}")


def too_deep(body: bytes, limit: int) -> bool:
    """Whether arrays and objects are nested more than `limit` deep.

    Works on whole buffers, so that a hostile body costs about what reading it costs: strings and
    scalars are removed, then pairs of brackets from the inside out, one level per pass.
    """
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    rest = _STRING.sub(b"", body).translate(None, _NO_BRACKET)
    for _ in range(limit):
        if not rest:
            return False
        shorter = rest.replace(b"[]", b"").replace(b"{}", b"")
        if len(shorter) == len(rest):
            break  # unbalanced: the parser would refuse it, if it were not too deep for it
        rest = shorter
    return bool(rest)


def parse_json(body: bytes, max_depth: int) -> Any:
    """Parse a body: RFC 8259, so no NaN, no lone surrogates, nothing after the value.

    Raises:
        BadRequest: it is not JSON, or too deep.
    """
    if too_deep(body, max_depth):
        raise BadRequest(
            "the body is nested too deeply or its brackets do not match",
            f"arrays and objects may be nested {max_depth} deep",
            "Flatten the body.",
        )
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(
            "the body is not valid JSON", str(error), "Check it with a JSON parser."
        ) from error


class JsonRequest(Request):
    """A request whose body is read within the limits of the settings and parsed strictly."""

    @property
    def max_bytes(self) -> int:
        """The longest body that is read."""
        return self.app.state.service.settings.max_body_bytes

    @property
    def declared_bytes(self) -> int:
        """The length that the client announces, 0 where it does not."""
        declared = self.headers.get("content-length", "")
        return int(declared[:20]) if declared.isdecimal() else 0

    async def body(self) -> bytes:
        """The body.

        Raises:
            PayloadTooLarge: it is longer than `max_bytes`.
            RequestTimeout: it comes too slowly.
        """
        if not hasattr(self, "_body"):
            limit = self.max_bytes
            if self.declared_bytes > limit:
                raise too_large(limit)
            chunks, size = [], 0
            began = asyncio.get_running_loop().time()
            stream = self.stream()
            while True:
                deadline = began + _BODY_GRACE_S + size / _BODY_BYTES_PER_S
                try:
                    async with asyncio.timeout_at(deadline):
                        chunk = await anext(stream, None)
                except TimeoutError as error:
                    raise RequestTimeout(
                        "the body of the request comes too slowly",
                        f"{size} bytes came in {deadline - began:.0f} seconds",
                        "Send it faster, or send less.",
                    ) from error
                if chunk is None:
                    break
                size += len(chunk)
                if size > limit:
                    raise too_large(limit)
                chunks.append(chunk)
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        """The parsed body.

        Raises:
            BadRequest: it is not JSON, or too deep.
        """
        return parse_json(await self.body(), self.app.state.service.settings.max_json_depth)


class JsonRoute(APIRoute):
    """A route that reads its body through `JsonRequest`."""

    request_class: type[Request] = JsonRequest

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a `request_class`."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(self.request_class(request.scope, request.receive))

        return handle


def too_large(limit: int, what: str = "the body") -> PayloadTooLarge:
    """The error of a body, or of a part of it, that is longer than `limit` bytes."""
    return PayloadTooLarge(
        f"{what} is too large",
        f"at most {limit} bytes are read",
        "Shorten it, send several requests, or raise --max-body-bytes.",
    )
