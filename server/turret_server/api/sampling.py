"""From the fields of a body to what the engine samples with; checks that need the model."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec

from turret_server.api.schema.fields import GenerationBody
from turret_server.engine.messages import Sampling
from turret_server.errors import BadRequest, PromptTooLong
from turret_server.pipeline.generation_defaults import GenerationDefaults

_SEED_MASK = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a request must fit, and what the model does where a request says nothing."""

    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)


def base_sampling(
    body: GenerationBody,
    limits: ModelLimits,
    *,
    logprobs: int | None,
    prompt_logprobs: int | None,
    grammar: str | None,
) -> Sampling:
    """Everything but `seed` and `max_tokens`, which differ among the choices of a request.

    Raises:
        BadRequest: a token id or top_k outside the vocabulary.
    """
    _check_ids(body.logit_bias or (), limits.vocab_size, "logit_bias.{}")
    _check_ids(body.stop_token_ids or (), limits.vocab_size, "stop_token_ids")
    defaults = limits.defaults
    top_k = max(defaults.top_k if body.top_k is None else body.top_k, 0)
    if top_k > limits.vocab_size:
        raise BadRequest(
            f"'top_k' is {top_k}", f"the vocabulary has {limits.vocab_size} tokens", param="top_k"
        )
    stops = dict.fromkeys(body.stop_token_ids or ())
    if not body.ignore_eos:
        stops |= dict.fromkeys(limits.eos_token_ids)
    return Sampling(
        temperature=_or(body.temperature, defaults.temperature),
        top_p=_or(body.top_p, defaults.top_p),
        top_k=top_k,
        min_p=_or(body.min_p, defaults.min_p),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        repetition_penalty=_or(body.repetition_penalty, defaults.repetition_penalty),
        logit_bias=body.logit_bias or {},
        min_tokens=body.min_tokens or 0,
        stop_token_ids=tuple(stops),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
    )


def choice_sampling(sampling: Sampling, seed: int | None, choice: int, max_tokens: int) -> Sampling:
    """The sampling of one choice: its own seed, so that `n` answers differ.

    Choice `i` draws from `seed + i`; without a seed, from a random one.
    """
    drawn = secrets.randbits(63) if seed is None else (seed + choice) & _SEED_MASK
    return msgspec.structs.replace(sampling, seed=drawn, max_tokens=max(max_tokens, 1))


def fit_max_tokens(
    asked: int | None,
    prompt_tokens: int,
    limits: ModelLimits,
    *,
    virtual_tokens: int,
    default: int | None,
    param: str,
    prompt_param: str,
) -> int:
    """How many tokens a choice may have.

    Args:
        asked: by the client; None for the default.
        prompt_tokens: of its prompt.
        limits: of the model.
        virtual_tokens: that adapters put before the prompt.
        default: None for all that the context leaves.
        param: the field that `asked` came from.
        prompt_param: the field that the prompt came from.

    Raises:
        PromptTooLong: prompt and answer do not fit the context.
    """
    room = limits.max_model_len - prompt_tokens - virtual_tokens
    added = f", the adapters add {virtual_tokens} virtual tokens" if virtual_tokens else ""
    if room < 1:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens{added}",
            f"the context holds {limits.max_model_len}, answer included",
            "Shorten the prompt.",
            param=prompt_param,
        )
    if asked is None:
        return room if default is None else min(default, room)
    if asked > room:
        raise PromptTooLong(
            f"'{param}' is {asked}",
            f"the prompt has {prompt_tokens} tokens{added} and the context holds "
            f"{limits.max_model_len}, answer included",
            f"Ask for at most {room} tokens, or shorten the prompt.",
            param=param,
        )
    return asked


def check_min_tokens(body: GenerationBody, max_tokens: int) -> None:
    """Refuse a request whose least answer is longer than its longest."""
    if (body.min_tokens or 0) > max_tokens:
        raise BadRequest(
            f"'min_tokens' is {body.min_tokens}",
            f"at most {max_tokens} tokens are generated",
            "Lower min_tokens.",
            param="min_tokens",
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _check_ids(ids: Collection[int], vocab_size: int, param: str) -> None:
    for i, token in enumerate(ids):
        if token >= vocab_size:
            where = param.format(token) if "{}" in param else f"{param}[{i}]"
            raise BadRequest(
                f"'{where}' names token {token}",
                f"the vocabulary has tokens 0 to {vocab_size - 1}",
                param=where,
            )
