"""Messages of a request, brought into the form that chat templates were written for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from turret_server.errors import BadRequest

# Names under which clients send a model's earlier thoughts; templates read the first.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

_RESPONSES = "this part belongs to the Responses API"
_DOCUMENT = "documents are read by POST /v1/chat/completions and /v1/layout"

# Parts that are not text -> why they are not read, and what to send instead.
_OTHER_PARTS = {
    "input_text": (_RESPONSES, 'Send {"type": "text", "text": "..."}.'),
    "input_image": (_RESPONSES, 'Send {"type": "image_url", "image_url": {"url": "data:..."}}.'),
    "input_file": (_RESPONSES, 'Send {"type": "file", "file": {"file_data": "data:..."}}.'),
    "document": (_DOCUMENT, "Send it there."),
    "image_url": (_DOCUMENT, "Send it there."),
    "file": (_DOCUMENT, "Send it there."),
}


def normalise(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as templates expect them, as copies.

    Text parts become one string, one part per line. Fields that are null are dropped, because
    templates ask whether a field is there. Arguments of tool calls, JSON text in OpenAI's form,
    become objects, because templates write them as JSON.

    Raises:
        BadRequest: a message has no role, or content that is not text.
    """
    if not messages:
        raise BadRequest(
            "'messages' is empty",
            "a chat needs at least one message",
            'Send for example [{"role": "user", "content": "Hello"}].',
            param="messages",
        )
    return [_message(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadRequest(
            f"{where!r} is not a message",
            "a message is an object with a 'role'",
            'Send for example {"role": "user", "content": "Hello"}.',
            param=where,
        )
    out = {key: value for key, value in message.items() if value is not None}
    if "content" in out:
        out["content"] = _text(out["content"], f"{where}.content")
    elif out["role"] == "assistant" and not out.get("tool_calls"):
        out["content"] = ""  # an answer that was empty; templates look for its text
    if "tool_calls" in out:
        out["tool_calls"] = _tool_calls(out["tool_calls"], f"{where}.tool_calls")
    for field in _REASONING_FIELDS:
        if field in out:
            out.setdefault("reasoning_content", out[field])
            out.setdefault("thinking", out[field])
            break
    return out


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise BadRequest(
            f"{where!r} is not text",
            f"it is of type {type(content).__name__}",
            "Send a string, or a list of text parts.",
            param=where,
        )
    return "\n".join(part_text(part, f"{where}[{at}]") for at, part in enumerate(content))


def part_text(part: Any, where: str) -> str:
    """The text of a part of a message.

    Raises:
        BadRequest: it is not text; `where` names it.
    """
    match part:
        case str(text) | {"type": "text", "text": str(text)}:
            return text
        case {"type": "refusal", "refusal": str(text)}:
            return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    why, fix = _OTHER_PARTS.get(
        str(kind),
        (
            f"this model reads text only, and the part is of type {str(kind)[:64]!r}",
            'Send parts of the form {"type": "text", "text": "..."}.',
        ),
    )
    raise BadRequest(f"{where!r} cannot be read", why, fix, param=where)


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise _bad_call(where, "it is not a list")
    out = []
    for at, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _bad_call(f"{where}[{at}]", "it has no 'function' with a 'name'")
        arguments = _arguments(function.get("arguments"))
        out.append({**call, "function": {**function, "arguments": arguments}})
    return out


def _arguments(value: Any) -> Any:
    """Return the object that JSON text stands for, or the text where it stands for none.

    The text may be what a model wrote earlier; that it is broken must not end the conversation.
    """
    if not isinstance(value, str):
        return {} if value is None else value
    if not value.strip():
        return {}
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, dict) else value


def _bad_call(where: str, why: str) -> BadRequest:
    return BadRequest(
        f"{where!r} is not a tool call",
        why,
        'Send {"id": "...", "type": "function", "function": {"name": "...", "arguments": "{}"}}.',
        param=where,
    )
