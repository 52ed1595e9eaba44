"""Tools of one chat request: what the model sees, how it is constrained, what it called."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from turret_server.api.schema.chat import ChatBody, NamedToolChoice, plain_tools
from turret_server.api.service import Service
from turret_server.api.threads import GRAMMARS
from turret_server.errors import BadRequest, Unprocessable
from turret_server.pipeline.tools.call_stream import CallStream
from turret_server.pipeline.tools.calls import ContentDelta, Delta, ToolCall
from turret_server.pipeline.tools.parser import ToolParser


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How one request uses tools; without tools, how it doesn't.

    Attributes:
        service: of the app.
        shown: definitions that the chat template gets.
        choice: as the client sent it.
        parser: finds calls in the answer; None leaves the answer as text.
        one_call: at most one call per answer.
    """

    service: Service
    shown: list[dict[str, Any]] | None = None
    choice: str | dict[str, Any] = "none"
    parser: ToolParser | None = None
    one_call: bool = False

    @property
    def needs_special(self) -> bool:
        """Whether the marks around calls are special tokens, which the parser must see."""
        tokenizer = self.service.tokenizer
        ids = [tokenizer.token_id(mark) for mark in self.parser.markers] if self.parser else []
        return any(i is not None and tokenizer.is_special(i) for i in ids)

    async def grammar(self) -> str | None:
        """A grammar of answers that obey `tool_choice`, None where any answer does.

        Raises:
            BadRequest: the parameters of a tool are not a schema that can be followed.
        """
        parser, shown = self.parser, self.shown
        if parser is None or shown is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(
            GRAMMARS,
            lambda: self.service.constraints.tools(
                shown, self.choice, parser, parallel=not self.one_call
            ),
        )

    def stream(self) -> ToolStream | None:
        """What reads one streamed answer; None where the answer is text."""
        return ToolStream(self.parser.stream(), self.one_call) if self.parser else None

    def message(self, text: str, finish_reason: str | None) -> tuple[dict[str, Any], str | None]:
        """(fields of the message, finish reason) of a whole answer."""
        if self.parser is None:
            return {"content": text}, finish_reason
        content, calls = self.parser.parse(text)
        if not calls:
            return {"content": content if content is not None else ""}, finish_reason
        calls = calls[:1] if self.one_call else calls
        finish_reason = "tool_calls" if finish_reason == "stop" else finish_reason
        return {"content": content, "tool_calls": [_wire(call) for call in calls]}, finish_reason


class ToolStream:
    """Turns the text of a streamed answer into the fields of `delta`."""

    def __init__(self, parser: CallStream, one_call: bool) -> None:
        self._parser = parser
        self._one_call = one_call
        self._called = False

    def push(self, text: str, *, last: bool) -> dict[str, Any]:
        """The fields that a piece of text adds; `last` when no more will come."""
        deltas = list(self._parser.push(text))
        if last:
            deltas += self._parser.finish()
        return self._fields(deltas)

    def finish_reason(self, finish_reason: str | None) -> str | None:
        """The finish reason, given whether the answer called a tool."""
        return "tool_calls" if finish_reason == "stop" and self._called else finish_reason

    def _fields(self, deltas: list[Delta]) -> dict[str, Any]:
        content, calls = "", []
        for delta in deltas:
            if isinstance(delta, ContentDelta):
                content += delta.text
            elif not (self._one_call and delta.index > 0):
                self._called = True
                calls.append(_wire_delta(delta))
        fields: dict[str, Any] = {"content": content}
        if calls:
            fields["tool_calls"] = calls
        return fields


def tool_use(service: Service, body: ChatBody) -> ToolUse:
    """Read the tool fields of a body.

    Raises:
        BadRequest: a forced call contradicts another constraint.
        Unprocessable: the model's form of calls is not known.
    """
    choice = body.tool_choice or "auto"
    if not body.tools or choice == "none":
        return ToolUse(service)
    if (parser := service.prompt.tool_parser) is None:
        raise Unprocessable(
            "'tools' cannot be used with this model",
            "its chat template writes calls in a form that is not known",
            "Set tool_choice to none, or describe the tools in a message.",
            param="tools",
        )
    if (constraint := body.constraint()) is not None:
        # Following the form would silently rule out calls, calling would break the form.
        raise BadRequest(
            f"'tools' and {constraint.param!r} contradict each other",
            "an answer that follows a form cannot be a call",
            "Set tool_choice to none, or leave the constraint out.",
            param=constraint.param,
        )
    return ToolUse(
        service,
        shown=plain_tools(body.tools),
        choice=choice.model_dump() if isinstance(choice, NamedToolChoice) else choice,
        parser=parser,
        one_call=body.parallel_tool_calls is False,
    )


def _wire(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _wire_delta(delta: Any) -> dict[str, Any]:
    wire: dict[str, Any] = {"index": delta.index}
    function: dict[str, Any] = {"arguments": delta.arguments}
    if delta.id is not None:
        wire |= {"id": delta.id, "type": "function"}
        function["name"] = delta.name
    return wire | {"function": function}
