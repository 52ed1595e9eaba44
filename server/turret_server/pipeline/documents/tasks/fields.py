"""The fields of a key-value extraction: a list of keys or a JSON schema, as schema and question."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from turret_server.errors import BadRequest

MAX_FIELDS = 256
MAX_KEY_CHARS = 256
MAX_DESCRIPTION_CHARS = 4096

_FIX = 'Send a list of keys, or a schema such as {"type": "object", "properties": {...}}.'


def fields_schema(fields: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema that an answer must follow, for constrained decoding.

    Args:
        fields: keys, whose values are then text or null, all of them required; or a schema of an
            object, which is used as it is.

    Raises:
        BadRequest: there are no fields, too many, or one can't be used.
    """
    if isinstance(fields, Mapping):
        properties = fields.get("properties")
        if fields.get("type") != "object" or not isinstance(properties, Mapping):
            raise _bad("the schema is not one of an object with properties")
        _check(list(properties))
        return dict(fields)
    if isinstance(fields, str) or not isinstance(fields, Sequence):
        raise _bad("the fields are neither a list nor a schema")
    _check(fields)
    return {
        "type": "object",
        "properties": {key: {"type": ["string", "null"]} for key in fields},
        "required": list(fields),
        "additionalProperties": False,
    }


def fields_question(schema: Mapping[str, Any]) -> str:
    """Return the question that asks for a schema's fields: one line each, with what it says.

    Raises:
        BadRequest: the schema is nested too deeply or describes a field at too great a length.
    """
    try:
        lines = [_line(key, value) for key, value in schema["properties"].items()]
    except RecursionError:
        raise _bad("the schema is nested too deeply") from None
    return "\n".join(["What are the values of these keys?", *lines])


def _line(key: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"- {key}"
    if "properties" in value or "items" in value:
        about = json.dumps(value, ensure_ascii=False, default=str)
    else:
        about = value.get("description", "")
    if not isinstance(about, str) or len(about) > MAX_DESCRIPTION_CHARS:
        raise _bad(f"the description of {key!r} is no text of {MAX_DESCRIPTION_CHARS} characters")
    return f"- {key}: {about}" if about else f"- {key}"


def _check(keys: Sequence[Any]) -> None:
    if not keys:
        raise _bad("there are none")
    if len(keys) > MAX_FIELDS:
        raise _bad(f"there are {len(keys):,}; {MAX_FIELDS} are allowed")
    for key in keys:
        if not isinstance(key, str) or not key.strip():
            raise _bad("a key is empty or no text")
        if len(key) > MAX_KEY_CHARS:
            raise _bad(f"a key has {len(key):,} characters; {MAX_KEY_CHARS} are allowed")
    if len(set(keys)) < len(keys):
        raise _bad("a key comes twice")


def _bad(why: str) -> BadRequest:
    return BadRequest("the fields to extract cannot be used", why, _FIX)
