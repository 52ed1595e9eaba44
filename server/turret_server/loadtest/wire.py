"""The part of answers that commands and load tests read; unknown fields are skipped, not built."""

from __future__ import annotations

from typing import Any

import msgspec


class Delta(msgspec.Struct, gc=False):
    """A piece of a chat message, or the whole message when the answer is not streamed."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None
    citations: list[dict[str, Any]] | None = None


class Choice(msgspec.Struct, gc=False):
    """One choice of an answer, or a piece of it."""

    text: str | None = None
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None

    def has_output(self) -> bool:
        """Tell whether a user would see anything new; a chunk with the role alone is not output."""
        if self.text:
            return True
        piece = self.delta or self.message
        return piece is not None and bool(
            piece.content or piece.reasoning_content or piece.reasoning or piece.tool_calls
        )


class Usage(msgspec.Struct, gc=False):
    """Token counts as the server tells them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answer(msgspec.Struct):
    """A completion, a chat completion, a chunk of either, or an error."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None
    layout: dict[str, Any] | None = None


decode_answer = msgspec.json.Decoder(Answer).decode
