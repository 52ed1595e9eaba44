"""What a stream brings: typed events, and the whole answer put together from them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from turret_client.answers import (
    Answer,
    Choice,
    ToolCall,
    Usage,
    parse_citations,
    parse_usage,
)
from turret_client.documents import Citation
from turret_client.errors import ConnectionFailed, error_from_body
from turret_client.parsing import invalid


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of one choice; `logprobs` of its tokens where they were asked for."""

    index: int
    text: str
    logprobs: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of a tool call: its id and name come first, then its arguments piece by piece."""

    index: int
    call_index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """One choice is complete; see `Choice` for what came with it."""

    index: int
    finish_reason: str
    stop_reason: str | int | None = None
    citations: tuple[Citation, ...] = ()
    task_answer: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Token counts, at the end of the stream."""

    usage: Usage


Event = TextDelta | ToolCallDelta | Finished | UsageReport


@dataclass(slots=True)
class _Parts:
    """One choice in the making."""

    text: str = ""
    logprobs: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    calls: dict[int, ToolCall] = field(default_factory=dict)
    finished: Finished | None = None


class EventReader:
    """Turns the data of server-sent events into ours, and remembers the whole answer."""

    def __init__(self) -> None:
        self.ended = False
        self._id = self._model = ""
        self._usage: Usage | None = None
        self._parts: defaultdict[int, _Parts] = defaultdict(_Parts)

    def read(self, data: str) -> list[Event]:
        """The events of one chunk; none at the end of the stream.

        Raises:
            TurretError: the server failed on the way.
            InvalidAnswer: the chunk is not one of a completion.
        """
        if data == "[DONE]":
            self.ended = True
            return []
        try:
            chunk = json.loads(data)
            if (error := error_from_body(chunk)) is not None:
                raise error
            self._id, self._model = chunk.get("id", ""), chunk.get("model", "")
            events = [event for choice in chunk["choices"] for event in _events(choice)]
            if (usage := parse_usage(chunk.get("usage"))) is not None:
                events.append(UsageReport(usage))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise invalid(f"a chunk of the stream is malformed: {error!r}") from error
        for event in events:
            self._remember(event)
        return events

    def check_ended(self) -> None:
        """Raise unless the stream ended as streams do.

        Raises:
            ConnectionFailed: it was cut off.
        """
        if not self.ended:
            raise ConnectionFailed(
                "the answer was cut off",
                "the connection closed before the end of the stream",
                "Ask again.",
            )

    def answer(self) -> Answer:
        """All that has come so far as one answer."""
        choices = tuple(_choice(index, parts) for index, parts in sorted(self._parts.items()))
        return Answer(self._id, self._model, choices, self._usage)

    def _remember(self, event: Event) -> None:
        if isinstance(event, UsageReport):
            self._usage = event.usage
            return
        parts = self._parts[event.index]
        match event:
            case TextDelta():
                parts.text += event.text
                for name, values in (event.logprobs or {}).items():
                    parts.logprobs[name] += values or []
            case ToolCallDelta():
                before = parts.calls.get(event.call_index, ToolCall("", "", ""))
                parts.calls[event.call_index] = ToolCall(
                    event.id or before.id,
                    event.name or before.name,
                    before.arguments + event.arguments,
                )
            case Finished():
                parts.finished = event


def _choice(index: int, parts: _Parts) -> Choice:
    choice = Choice(
        index=index,
        text=parts.text,
        tool_calls=tuple(parts.calls.values()),
        logprobs=dict(parts.logprobs) or None,
    )
    if (end := parts.finished) is None:
        return choice
    return replace(
        choice,
        finish_reason=end.finish_reason,
        stop_reason=end.stop_reason,
        citations=end.citations,
        task_answer=end.task_answer,
    )


def _events(choice: dict[str, Any]) -> list[Event]:
    index, delta = choice["index"], choice.get("delta") or {}
    events: list[Event] = []
    text, logprobs = choice.get("text") or delta.get("content") or "", choice.get("logprobs")
    if text or logprobs:
        events.append(TextDelta(index, text, logprobs))
    for call in delta.get("tool_calls") or ():
        function = call.get("function") or {}
        arguments = function.get("arguments") or ""
        events.append(
            ToolCallDelta(index, call["index"], arguments, call.get("id"), function.get("name"))
        )
    if choice.get("finish_reason") is not None:
        events.append(
            Finished(
                index,
                choice["finish_reason"],
                choice.get("stop_reason"),
                parse_citations(delta),
                delta.get("layout"),
            )
        )
    return events
