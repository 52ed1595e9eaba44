"""Fields that chat and text completions share. Every number has a lower and an upper bound."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from turret_server.api.schema.adapter import AdapterChoice
from turret_server.api.schema.base import Part, RequestBody
from turret_server.api.schema.constrain import ConstraintFields
from turret_server.api.schema.fusion import FusionBody
from turret_server.api.schema.rerank import RerankPart
from turret_server.errors import BadRequest

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_LOGPROBS = 20
MAX_TOKENS = 2**24  # far beyond any context; the context itself is checked with the prompt
INT64 = 2**63


def _stops(value: Any) -> Any:
    """A string or a list of strings, as a tuple."""
    stops = [value] if isinstance(value, str) else value
    if stops is None or not isinstance(stops, list):
        return stops
    if len(stops) > MAX_STOPS:
        raise BadRequest(
            f"'stop' holds {len(stops)} strings", f"at most {MAX_STOPS} are allowed", param="stop"
        )
    for i, stop in enumerate(stops):
        param = "stop" if isinstance(value, str) else f"stop[{i}]"
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARS:
            raise BadRequest(
                f"{param!r} is not a stop string",
                f"a stop string has 1 to {MAX_STOP_CHARS} characters",
                "Remove it, or leave 'stop' out.",
                param=param,
            )
    return stops


def _biases(value: Any) -> Any:
    """JSON's string keys as token ids."""
    if not isinstance(value, dict):
        return value
    if len(value) > 1024:
        raise BadRequest(
            f"'logit_bias' has {len(value)} entries", "at most 1024 are allowed", param="logit_bias"
        )
    biases = {}
    for key, bias in value.items():
        param = f"logit_bias.{str(key)[:32]}"
        if not str(key).isascii() or not str(key).isdigit() or len(key) > 10:
            raise BadRequest(
                f"{param!r} is not a token", 'the keys are token ids such as "50256"', param=param
            )
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise BadRequest(f"{param!r} is no bias", "a bias lies in -100..100", param=param)
        biases[int(key)] = float(bias)
    return biases


class StreamOptions(Part):
    """What a stream carries beside text."""

    include_usage: bool | None = Field(
        None, description="Send one last chunk without choices that carries the usage."
    )
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage: send the usage so far with every chunk (vLLM)."
    )


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


class GenerationBody(RequestBody, ConstraintFields):
    """What both kinds of completion take."""

    model: str | None = Field(
        None,
        max_length=2048,
        description="The base model, an adapter, or several adapters as `a+b` or `a:0.7+b`. "
        "Left out, it is the base model. GET /v1/models lists the names.",
    )
    adapters: list[AdapterChoice] | None = Field(
        None, max_length=16, description="Adapters to stack on what `model` names."
    )
    fusion: FusionBody | None = Field(
        None, description="Further models whose logits are combined with those of this one."
    )
    rerank: RerankPart | None = Field(
        None, description="Draw several answers, and return those that a scorer finds best."
    )
    stream: bool | None = Field(None, description="Send server-sent events, one per token.")
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = Field(
        None, description="Number of answers per prompt. Default 1."
    )
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        None, description="Most tokens to generate; 0 only with echo."
    )
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        None, description="No end of sequence, stop token or stop string ends so many tokens."
    )
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        None, description="0 is greedy. Default: the model's own, else 1."
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="Sample from the smallest set of tokens with this probability. Default 1."
    )
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(
        None, description="Sample from this many most likely tokens; 0 or -1 is all. Default all."
    )
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="Least probability of a token, relative to the likeliest. Default 0."
    )
    presence_penalty: Penalty | None = Field(None, description="For tokens that were generated.")
    frequency_penalty: Penalty | None = Field(None, description="Per time a token was generated.")
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = Field(
        None, description="Divides the logits of tokens in prompt and answer. Default 1."
    )
    logit_bias: Annotated[
        dict[int, float] | None,
        BeforeValidator(_biases),
        WithJsonSchema(
            {
                "type": ["object", "null"],
                "maxProperties": 1024,
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            }
        ),
    ] = Field(None, description="Token id -> number added to its logit, -100 to 100.")
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = Field(
        None, description="The same seed gives the same answer, whatever else is being served."
    )
    stop: Annotated[
        list[str] | None,
        BeforeValidator(_stops),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                    {
                        "type": "array",
                        "maxItems": MAX_STOPS,
                        "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                    },
                    {"type": "null"},
                ]
            }
        ),
    ] = Field(None, description="The answer ends before any of these strings.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = Field(
        None, description="The answer ends at any of these tokens."
    )
    include_stop_str_in_output: bool | None = Field(
        None, description="Keep the stop string, or the text of the stop token, in the answer."
    )
    ignore_eos: bool | None = Field(
        None, description="Do not end at the end-of-sequence token (for load tests)."
    )
    skip_special_tokens: bool | None = Field(
        None, description="Leave special tokens out of the text. Default true."
    )
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="Log-probabilities of this many tokens at each prompt position (vLLM)."
    )
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Prompt prefixes are shared only between requests of the same salt."
    )
    timeout_s: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] | None = Field(
        None,
        description="The request fails with 504 when it is not finished after this many seconds.",
    )
