"""Bodies that carry documents: longer than others, and parsed only where they are not a document.

An OCR result is JSON inside JSON. Parsing it holds the interpreter (9 MiB of Textract's: 160 ms,
16 MiB of brackets: 860 ms), and the loop with it, so it is cut out of the body as it stands and
parsed in a worker. Cutting out skips over it at some 2 GB/s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import Request

from turret_server.api.fairness import party_of
from turret_server.api.json_body import JsonRequest, JsonRoute, parse_json, too_large
from turret_server.errors import BadRequest

# The part of a message that carries a document -> its field that is long.
LONG_FIELDS = {"document": "data", "image_url": "url", "file": "file_data"}

_INLINE_BYTES = 64 << 10  # parsed whole: a millisecond at most
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_arrays = msgspec.json.Decoder(list[msgspec.Raw])
_encode = msgspec.json.encode
_NULL = msgspec.Raw(b"null")

_Path = tuple[str | int, ...]


def parse_document_body(body: bytes, *, max_rest_bytes: int, max_depth: int) -> Any:
    """Parse a body, but not the JSON of its documents.

    Args:
        body: a chat body, or a body that is one part of a message itself.
        max_rest_bytes: longest body without its documents.
        max_depth: deepest nesting outside of them.

    Returns:
        The parsed body. Where a document is an object or an array, it holds a `msgspec.Raw`.

    Raises:
        BadRequest: it is not JSON, or nested too deeply.
        PayloadTooLarge: what is not a document is too long.
    """
    holes: dict[_Path, msgspec.Raw] = {}
    try:
        rest = bytes(_cut(msgspec.Raw(body), (), holes, ("messages", "content")))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from error
    if len(rest) > max_rest_bytes:
        raise too_large(max_rest_bytes, what="the body without its documents")
    value = parse_json(rest, max_depth)
    for path, raw in holes.items():
        _fill(value, path, raw)
    return value


class DocumentRequest(JsonRequest):
    """A request whose body may carry documents."""

    @property
    def max_bytes(self) -> int:
        """The longest body that is read."""
        settings = self.app.state.service.settings
        return settings.max_body_bytes + settings.documents.max_body_bytes

    async def body(self) -> bytes:
        """The body.

        Raises:
            PayloadTooLarge: it is too long even for documents.
            ServerOverloaded, QueueFull, EngineUnavailable: it is long, and would be refused
                once it is there.
        """
        if not hasattr(self, "_body") and self.declared_bytes > _INLINE_BYTES:
            self.app.state.service.admission.check(party_of(self))
        return await super().body()

    async def json(self) -> Any:
        """The parsed body; see `parse_document_body`.

        Raises:
            BadRequest, PayloadTooLarge: it is not JSON, or too deep, or too long.
        """
        body = await self.body()
        settings = self.app.state.service.settings
        if len(body) <= _INLINE_BYTES:
            return parse_json(body, settings.max_json_depth)
        # A thread, so that others get the interpreter between the passes over the body.
        return await asyncio.to_thread(
            parse_document_body,
            body,
            max_rest_bytes=settings.max_body_bytes,
            max_depth=settings.max_json_depth,
        )


class DocumentRoute(JsonRoute):
    """A route that takes documents."""

    request_class: type[Request] = DocumentRequest


def _cut(
    value: msgspec.Raw, path: _Path, holes: dict[_Path, msgspec.Raw], lists: Sequence[str]
) -> msgspec.Raw:
    """The JSON of a body, a message or a part, with nulls for what `holes` gets.

    `lists` names the array to go into at this level, then those at the levels below.
    """
    fields = _objects.decode(value)
    for kind, name in LONG_FIELDS.items():
        if kind in fields and (inner := _object(fields[kind])) and name in inner:
            holes[(*path, kind, name)] = inner[name]
            fields[kind] = msgspec.Raw(_encode({**inner, name: _NULL}))
    if lists and (items := _array(fields.get(lists[0], _NULL))):
        cut = [
            _cut(item, (*path, lists[0], at), holes, lists[1:]) if _starts(item, b"{") else item
            for at, item in enumerate(items)
        ]
        fields[lists[0]] = msgspec.Raw(_encode(cut))
    return msgspec.Raw(_encode(fields))


def _object(value: msgspec.Raw) -> dict[str, msgspec.Raw]:
    return _objects.decode(value) if _starts(value, b"{") else {}


def _array(value: msgspec.Raw) -> list[msgspec.Raw]:
    return _arrays.decode(value) if _starts(value, b"[") else []


def _starts(value: msgspec.Raw, with_: bytes) -> bool:
    return bytes(memoryview(value)[:1]) == with_


def _fill(value: Any, path: _Path, raw: msgspec.Raw) -> None:
    for step in path[:-1]:
        value = value[step]
    try:
        whole = _starts(raw, b"{") or _starts(raw, b"[")
        value[path[-1]] = raw if whole else msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _not_json(error) from error


def _not_json(error: Exception) -> BadRequest:
    return BadRequest("the body is not valid JSON", str(error), "Check it with a JSON parser.")
