"""The body of POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from turret_server.api.schema.fields import MAX_LOGPROBS, GenerationBody
from turret_server.errors import BadRequest

MAX_PROMPTS = 1024
_INT32 = 2**31

Prompt = str | list[int]

_TEXT = {"type": "string", "minLength": 1}
_TOKENS = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 0, "maximum": _INT32 - 1},
}


def _prompts(value: Any) -> list[Prompt]:
    """Any of the four forms as a list of prompts.

    Checked by hand: pydantic would try every form on every one of thousands of token ids, and
    name the place of an error by the form that it tried last.
    """
    if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
        return [_prompt(value, "prompt")]
    if not isinstance(value, list) or not value:
        raise _bad("prompt")
    if len(value) > MAX_PROMPTS:
        raise BadRequest(
            f"'prompt' holds {len(value)} prompts",
            f"at most {MAX_PROMPTS} are allowed in one request",
            "Send several requests.",
            param="prompt",
        )
    return [_prompt(one, f"prompt[{i}]") for i, one in enumerate(value)]


def _prompt(value: Any, param: str) -> Prompt:
    if isinstance(value, str):
        if value:
            return value
        raise _bad(param)
    if not isinstance(value, list) or not value:
        raise _bad(param)
    _check_ids(value, param)
    return value


def _check_ids(ids: Sequence[Any], param: str) -> None:
    # set(map(type)) runs in C: long prompts are checked in microseconds per thousand ids.
    if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < _INT32:
        return
    for i, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < _INT32:
            raise BadRequest(
                f"'{param}[{i}]' is not a token id",
                f"token ids are integers from 0 to {_INT32 - 1}",
                param=f"{param}[{i}]",
            )


def _bad(param: str) -> BadRequest:
    return BadRequest(
        f"{param!r} is not a prompt",
        "a prompt is a non-empty string or a non-empty list of token ids; several may be sent "
        "as a list",
        param=param,
    )


class CompletionBody(GenerationBody):
    """One or more texts to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "demo", "prompt": "Once upon a time", "max_tokens": 64}]
        }
    )

    prompt: Annotated[
        list[Any],
        BeforeValidator(_prompts),
        WithJsonSchema(
            {
                "anyOf": [
                    _TEXT,
                    _TOKENS,
                    {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _TEXT},
                    {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _TOKENS},
                ]
            }
        ),
    ] = Field(description="A text, its token ids, or a list of either.")
    best_of: Annotated[int, Field(ge=1, le=128)] | None = Field(
        None, description="Generate this many answers and return the n likeliest per token."
    )
    echo: bool | None = Field(None, description="Return the prompt before the answer.")
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="Return the log-probabilities of this many tokens at each position."
    )
    add_special_tokens: bool | None = Field(
        None, description="Add what the tokenizer puts around a text. Default true."
    )

    @model_validator(mode="after")
    def _consistent(self) -> CompletionBody:
        n, best_of = self.n or 1, self.best_of
        if best_of is not None and best_of < n:
            raise BadRequest(
                f"'best_of' is {best_of} and 'n' is {n}",
                "the best n are chosen among best_of answers",
                "Raise best_of or lower n.",
                param="best_of",
            )
        if best_of is not None and best_of > n and self.stream:
            raise BadRequest(
                "'best_of' cannot be streamed",
                "the best answer is known when all are finished",
                "Set stream to false, or best_of to n.",
                param="best_of",
            )
        if self.max_tokens == 0 and not self.echo:
            raise BadRequest(
                "'max_tokens' is 0",
                "without echo there would be nothing to return",
                "Ask for at least one token, or set echo to true.",
                param="max_tokens",
            )
        return self
