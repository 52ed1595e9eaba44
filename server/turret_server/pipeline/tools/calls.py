"""What a tool parser yields: whole calls, or the pieces of calls while they are written."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass

_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call. `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call: the first has `id` and `name`, all may have a piece of the arguments."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


Delta = ContentDelta | ToolCallDelta


def new_call_id(short: bool = False) -> str:
    """Return a fresh id; `short` gives the nine letters and digits that Mistral asks for."""
    chars = "".join(secrets.choice(_ALPHABET) for _ in range(9 if short else 24))
    return chars if short else f"call_{chars}"
