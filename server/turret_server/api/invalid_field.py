"""What pydantic finds wrong with a field, as an error that says what, why and how to fix it."""

from __future__ import annotations

from typing import Any

from pydantic_core import ErrorDetails

from turret_server.errors import BadRequest

_SHOWN_INPUT_CHARS = 64


def invalid_field(found: ErrorDetails, within: str = "") -> BadRequest:
    """The error for one finding; its location is below the field `within`, or of the body."""
    param = json_path(found["loc"], within)
    match found["type"]:
        case "missing":
            why, fix = "the field is required", "Add it."
            return BadRequest(f"{param!r} is missing", why, fix, param=param)
        case "extra_forbidden":
            return BadRequest(
                f"{param!r} is not known",
                "its object has no such field",
                "Leave it out, or correct its name: /docs lists those that there are.",
                param=param,
            )
    why = found["msg"].removeprefix("Value error, ")
    return BadRequest(
        f"{param!r} is {shown(found.get('input'))}",
        why[:1].lower() + why[1:],
        "Correct the field.",
        param=param,
    )


def json_path(loc: tuple[int | str, ...], within: str = "") -> str:
    """("messages", 0, "role") -> "messages[0].role"."""
    path = within
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() or not path:
            path += f".{part}" if path else part
    return path[:256]


def shown(value: Any) -> str:
    """A value of a request, as an error tells of it: short, whatever it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    # Cut before it is quoted: the text may be a document.
    text = repr(value[: _SHOWN_INPUT_CHARS + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_INPUT_CHARS else text[:_SHOWN_INPUT_CHARS] + "…"
