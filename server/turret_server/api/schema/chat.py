"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from turret_server.api.schema.base import FastList, Part
from turret_server.api.schema.documents import CONTENT_SCHEMA, LayoutFields
from turret_server.api.schema.fields import MAX_LOGPROBS, MAX_TOKENS, GenerationBody
from turret_server.errors import BadRequest


class FunctionCall(Part):
    """The name and the arguments of a call."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1, max_length=256)
    arguments: str | dict[str, Any] | None = Field(None, description="JSON text, or the object.")


class ToolCallMessage(Part):
    """A call that the assistant made earlier."""

    model_config = ConfigDict(extra="allow")

    id: str | None = Field(None, max_length=256)
    type: Literal["function"] | None = None
    function: FunctionCall


class Message(Part):
    """One message. Further fields reach the chat template of the model."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Any, WithJsonSchema(CONTENT_SCHEMA)] = Field(
        None,
        description="A string, or parts: text, and pictures, files and OCR results, whose text is "
        "put in their place. Audio and video are refused.",
    )
    name: str | None = Field(None, max_length=256)
    tool_calls: FastList[ToolCallMessage] | None = Field(None, max_length=256)
    tool_call_id: str | None = Field(None, max_length=256)

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None and not self.tool_calls and self.role != "assistant":
            raise ValueError(
                "a message has content; only the assistant's may hold tool calls alone"
            )
        for name in ("audio", "function_call"):
            if (self.model_extra or {}).get(name) is not None:
                raise ValueError(f"{name!r} in a message is not supported")
        return self


class FunctionDefinition(Part):
    """A function that the model may call."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")
    description: str | None = Field(None, max_length=65_536)
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments.")
    strict: bool | None = None


class Tool(Part):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Part):
    """The name of a function."""

    name: str = Field(min_length=1, max_length=64)


class NamedToolChoice(Part):
    """Forces one tool."""

    type: Literal["function"]
    function: NamedFunction


class ChatBody(GenerationBody):
    """A conversation to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "demo",
                    "messages": [{"role": "user", "content": "What is the capital of France?"}],
                    "max_completion_tokens": 64,
                    "stream": True,
                }
            ]
        }
    )

    messages: FastList[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="Most tokens to generate. Default: what the context leaves."
    )
    logprobs: bool | None = Field(None, description="Return the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="With logprobs: also those of this many most likely tokens."
    )
    layout: LayoutFields | None = Field(
        None, description="How documents in the messages are read, laid out and asked about."
    )
    tools: FastList[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = Field(
        None, description="Default: auto with tools, none without."
    )
    parallel_tool_calls: bool | None = Field(
        None, description="false: at most one call per answer."
    )
    add_generation_prompt: bool | None = Field(
        None, description="End the prompt with the head of an assistant message. Default true."
    )
    continue_final_message: bool | None = Field(
        None, description="Continue the last message in place of answering it."
    )
    add_special_tokens: Literal[False] | None = Field(
        None, description="The chat template writes the special tokens."
    )
    echo: Literal[False] | None = Field(None, description="Completions only.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Variables of the model's chat template, such as enable_thinking."
    )

    @field_validator("max_tokens")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("a chat answer has at least one token")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs and self.top_logprobs > 0:
            raise BadRequest(
                "'top_logprobs' needs 'logprobs'",
                "log-probabilities were not asked for",
                "Set logprobs to true.",
                param="top_logprobs",
            )
        if isinstance(self.tool_choice, NamedToolChoice):
            name = self.tool_choice.function.name
            if name not in {tool.function.name for tool in self.tools or ()}:
                raise BadRequest(
                    f"'tool_choice' names {name!r}",
                    "no such function is among the tools",
                    param="tool_choice.function.name",
                )
        elif self.tool_choice == "required" and not self.tools:
            raise BadRequest(
                "'tool_choice' is 'required'", "the request has no tools", param="tool_choice"
            )
        return self


def plain_messages(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], int]:
    """Messages as plain JSON values, and roughly how many characters they hold."""
    plain = [message.model_dump(exclude_unset=True) for message in messages]
    return plain, sum(num_chars(message.content) for message in messages)


def plain_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
    """Tools as plain JSON values."""
    return [tool.model_dump(exclude_unset=True) for tool in tools] if tools else None


def text_size(value: Any) -> int:
    """Characters of all texts in a JSON value: what rendering and tokenising it may cost."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + text_size(one) for key, one in value.items())
    return sum(map(text_size, value)) if isinstance(value, list) else 1


def num_chars(content: Any) -> int:
    """Characters of the text of a message's content."""
    if isinstance(content, str):
        return len(content)
    parts = content if isinstance(content, list) else []
    return sum(len(str(p.get("text", ""))) for p in parts if isinstance(p, dict))
