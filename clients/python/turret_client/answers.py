"""What the server answers. Fields that a newer server adds are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from turret_client.documents import Citation
from turret_client.parsing import invalid, parse


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request; `cached_tokens` of the prompt were computed before."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of a request.

    Attributes:
        index: its place; `n` answers to each of several prompts come prompt by prompt.
        text: what the model wrote.
        finish_reason: "stop", "length", "tool_calls" or "abort".
        stop_reason: the stop string or stop token that ended it.
        tool_calls: of a chat answer.
        logprobs: as OpenAI's API shapes them, which differs between chat and completions.
        citations: the words of the documents that the answer rests on, if they were asked for.
        task_answer: the answer as the task of its layout reads it: answer, value, confidence.
    """

    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: dict[str, Any] | None = None
    citations: tuple[Citation, ...] = ()
    task_answer: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a chat or a completion request.

    Attributes:
        id: of the request.
        model: as it was asked for.
        choices: `n` answers per prompt.
        usage: of all choices; None where the server did not tell.
        raw: the body as it came, for fields not listed here; empty after a stream.
    """

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text if self.choices else ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of the first choice."""
        return self.choices[0].tool_calls if self.choices else ()


@dataclass(frozen=True, slots=True)
class Model:
    """Something that can be named as `model`.

    Attributes:
        id: the name.
        kind: "base", "recipe", or the kind of an adapter, such as "lora".
        root: where it was loaded from.
        parent: the base model of an adapter or recipe.
        digest: identity of the content.
        max_model_len: tokens of prompt and answer together.
        created: Unix time in seconds.
    """

    id: str
    kind: str = ""
    root: str = ""
    parent: str | None = None
    digest: str | None = None
    max_model_len: int | None = None
    created: int = 0


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that is loaded, or (tier "shelf") known by its folder alone.

    Attributes:
        id: its name.
        kind: such as "lora"; empty on the shelf.
        digest: identity of the content; None on the shelf.
        path: the folder that is read, on the server.
        rank: the largest, 0 for kinds without one.
        targets: modules it touches.
        num_parameters: as published.
        num_bytes: as served.
        base_model: as its own configuration names it.
        loaded_at: Unix time in seconds.
        resident: on the device now; others are fetched when needed.
        source: where it comes from: a folder, archive, repository or URL.
        tier: "device", "host", "disk" (to be read again) or "shelf" (never read so far).
        pinned: it stays on the device, whatever else is asked for.
        requests: in flight that use it.
        last_used: Unix time in seconds.
        primitives: what it compiled to.
        sites: the layers of each target: {"q_proj": "0-29"}.
        num_virtual_tokens: positions that it puts before the prompt.
        served_base: the base model of the server.
        base_match: whether `base_model` and `served_base` are one name; None where it names none.
        models: of the server, which it fits by its shapes: the base, auxiliaries.
        notes: what is worth knowing about it.
    """

    id: str
    kind: str = ""
    digest: str | None = None
    path: str = ""
    rank: int = 0
    targets: tuple[str, ...] = ()
    num_parameters: int = 0
    num_bytes: int = 0
    base_model: str | None = None
    loaded_at: float = 0.0
    resident: bool = False
    source: str = ""
    tier: str = ""
    pinned: bool = False
    requests: int = 0
    last_used: float | None = None
    primitives: tuple[str, ...] = ()
    sites: Mapping[str, str] = field(default_factory=dict, hash=False)
    num_virtual_tokens: int = 0
    served_base: str = ""
    base_match: bool | None = None
    models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a text or a conversation; `token_strs` where they were asked for."""

    tokens: tuple[int, ...]
    count: int
    max_model_len: int
    token_strs: tuple[str, ...] | None = None


def parse_answer(body: Any) -> Answer:
    """A chat completion or a completion.

    Raises:
        InvalidAnswer: it is neither.
    """
    try:
        choices = tuple(_choice(choice) for choice in body["choices"])
        usage = parse_usage(body.get("usage"))
        return Answer(body["id"], body["model"], choices, usage, body)
    except (TypeError, KeyError, AttributeError) as error:
        raise invalid(f"it is no completion: {error!r}") from error


def parse_citations(message: Mapping[str, Any]) -> tuple[Citation, ...]:
    """Citations of a message, or of a piece of one."""
    return tuple(parse(Citation, one) for one in message.get("citations") or ())


def parse_usage(body: Any) -> Usage | None:
    """Token counts, where there are any."""
    if not body:
        return None
    details = body.get("prompt_tokens_details") or {}
    return Usage(
        body["prompt_tokens"],
        body.get("completion_tokens", 0),
        body["total_tokens"],
        details.get("cached_tokens") or 0,
    )


def _choice(body: dict[str, Any]) -> Choice:
    message = body.get("message")
    beside = message or {}
    return Choice(
        index=body["index"],
        text=body["text"] if message is None else message.get("content") or "",
        finish_reason=body.get("finish_reason"),
        stop_reason=body.get("stop_reason"),
        tool_calls=tuple(
            ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in beside.get("tool_calls") or ()
        ),
        logprobs=body.get("logprobs"),
        citations=parse_citations(beside),
        task_answer=beside.get("layout"),
    )
