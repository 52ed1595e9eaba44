"""Tools for models whose chat template knows none: written into the conversation as text.

The form is that of Hermes, which most small models have seen: definitions in `<tools>`, calls in
`<tool_call>`, results in `<tool_response>`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_INSTRUCTIONS = """\
You can call functions. Their signatures, one JSON object per line, are:
<tools>
{tools}
</tools>

To call a function, answer with a JSON object of its name and its arguments, in this form:
<tool_call>
{{"name": "function name", "arguments": {{"argument": "value"}}}}
</tool_call>
Repeat the block to call several. The results will follow in <tool_response> blocks."""


def describe_tools(
    messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return `messages` with the definitions of `tools` at the end of the system message."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = _INSTRUCTIONS.format(tools=lines)
    if messages and messages[0]["role"] == "system":
        first, rest = messages[0], list(messages[1:])
        text = f"{first.get('content', '')}\n\n{text}".lstrip("\n")
        return [{**first, "content": text}, *rest]
    return [{"role": "system", "content": text}, *messages]


def write_out_calls(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `messages` with tool calls and tool results as text.

    Results become user messages, because a template that knows no tools knows no role for them;
    results in a row become one message, so that roles still alternate.
    """
    out: list[dict[str, Any]] = []
    in_results = False
    for message in messages:
        if message["role"] == "tool":
            block = f"<tool_response>\n{message.get('content', '')}\n</tool_response>"
            if in_results:
                out[-1]["content"] += f"\n{block}"
            else:
                out.append({"role": "user", "content": block})
            in_results = True
            continue
        in_results = False
        if "tool_calls" in message:
            blocks = [_call_block(call["function"]) for call in message["tool_calls"]]
            content = "\n".join(filter(None, [message.get("content", ""), *blocks]))
            message = {k: v for k, v in message.items() if k != "tool_calls"}
            message["content"] = content
        out.append(message)
    return out


def _call_block(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
