"""The bytes of streamed chunks. All that is constant in a stream is encoded once."""

from __future__ import annotations

from typing import Any

import msgspec

from turret_server.api.generation import Generation

_encode = msgspec.json.encode


class ChunkWriter:
    """Writes the chunks of one stream.

    Args:
        generation: whose answers are streamed.
        object_name: "chat.completion.chunk" or "text_completion".
        before: JSON between a choice's index and its text.
        after: JSON between its text and its logprobs.
        include_usage: a last chunk carries the usage, and the others a null in its place.
        continuous_usage: the others carry the usage so far.
    """

    def __init__(
        self,
        generation: Generation,
        object_name: str,
        before: bytes,
        after: bytes,
        *,
        include_usage: bool,
        continuous_usage: bool,
    ) -> None:
        head = _encode(
            {
                "id": generation.id,
                "object": object_name,
                "created": generation.created,
                "model": generation.model,
                "system_fingerprint": generation.fingerprint,
            }
        )
        self._generation = generation
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._continuous = include_usage and continuous_usage
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._starts = [self._head + b'{"index":%d' % choice.index for choice in generation.choices]
        self._text_starts = [start + before for start in self._starts]
        self._text_end = after + b',"logprobs":null,"finish_reason":null}'

    def text(self, index: int, text: str) -> bytes:
        """A chunk of nothing but text: the path of nearly every token."""
        return self._text_starts[index] + _encode(text) + self._text_end + self._end()

    def full(
        self, index: int, fields: dict[str, Any], beside: dict[str, Any] | None = None
    ) -> bytes:
        """A chunk with any fields of a choice, and any beside the choices."""
        end = self._end()
        if beside:
            end = b"]," + _encode(beside)[1:-1] + end[1:]
        return self._starts[index] + b"," + _encode(fields)[1:] + end

    def usage(self) -> bytes:
        """The last chunk: no choices, the usage."""
        return self._head + b'],"usage":' + _encode(self._generation.usage()) + b"}\n\n"

    def _end(self) -> bytes:
        if self._continuous:
            return b'],"usage":' + _encode(self._generation.usage()) + b"}\n\n"
        return self._tail
