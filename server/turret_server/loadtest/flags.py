"""Read command-line values into a `LoadConfig`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from turret_server.errors import BadRequest
from turret_server.loadtest.arrivals import Arrivals
from turret_server.loadtest.config import Endpoint, LoadConfig, Target, Tenant
from turret_server.loadtest.goodput import parse_objective
from turret_server.loadtest.lengths import Lengths, parse_lengths
from turret_server.loadtest.popularity import parse_popularity


def tenants(api_keys: Sequence[str], named: Sequence[str]) -> tuple[Tenant, ...]:
    """Return the callers: `--api-key KEY` become key-1, key-2, ...; `--tenant` bring a name.

    Raises:
        BadRequest: a `--tenant` is not NAME=KEY. The message does not repeat the value.
    """
    found = [Tenant(name=f"key-{i}", api_key=key) for i, key in enumerate(api_keys, 1)]
    for text in named:
        name, equals, key = text.partition("=")
        if not (name and equals and key):
            raise BadRequest("A --tenant is not understood", "it must read NAME=KEY")
        found.append(Tenant(name=name, api_key=key))
    return tuple(found) or (Tenant(name="default"),)


def targets(
    models: Sequence[str], bodies: Sequence[str]
) -> tuple[tuple[Target, ...], dict[str, Any]]:
    """Return the models with their own JSON fields, and the fields of all requests.

    Raises:
        BadRequest: a `--body` is no JSON object, or names a model that is not asked for.
    """
    if not models:
        raise BadRequest(
            "No model to ask for",
            "--model is not given and the server lists none at /v1/models",
            "Check --url, or give --model NAME",
        )
    shared: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {model: {} for model in models}
    for text in bodies:
        model, equals, fields = text.partition("=")
        if text.lstrip().startswith("{"):
            shared |= _json_object(text)
        elif equals and model in own:
            own[model] |= _json_object(fields)
        else:
            raise BadRequest(
                f"--body {text!r} not understood",
                f"it is neither OBJECT nor MODEL=OBJECT with a model out of {list(own)!r}",
            )
    return tuple(Target(model=model, body=own[model]) for model in models), shared


def prompts(
    words: str | None, tokens: str | None, tokenizer: Path | None
) -> tuple[Lengths, Path | None]:
    """Return prompt lengths, and the tokenizer when they are in tokens.

    Raises:
        BadRequest: both units are given, or tokens without a tokenizer.
    """
    if words is not None and tokens is not None:
        raise BadRequest("--prompt-words and --prompt-tokens are both given", "", "Drop one")
    if tokens is None:
        return parse_lengths(words or "60"), None
    if tokenizer is None:
        raise BadRequest(
            "--prompt-tokens needs a tokenizer",
            "the number of tokens in a text depends on it",
            "Add --tokenizer with the model's folder or its tokenizer.json",
        )
    path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    return parse_lengths(tokens), path


def load_config(
    *,
    endpoint: str,
    popularity: str,
    rate: float | None,
    burstiness: float,
    burst_size: int,
    output_lengths: str,
    objectives: Sequence[str],
    **rest: Any,
) -> LoadConfig:
    """Parse what is still text and return the configuration, not yet validated.

    Raises:
        BadRequest: naming the value at fault.
    """
    if endpoint not in ("completions", "chat"):
        raise BadRequest(f"--endpoint {endpoint!r} is unknown", "", "Use completions or chat")
    if rate is None and (burstiness != 1.0 or burst_size != 1):
        raise BadRequest(
            "--burstiness and --burst-size need --rate", "they shape the arrivals of an open loop"
        )
    arrivals = None
    if rate is not None:
        arrivals = Arrivals(rate_per_s=rate, burstiness=burstiness, burst_size=burst_size)
    return LoadConfig(
        endpoint=cast(Endpoint, endpoint),
        popularity=parse_popularity(popularity),
        arrivals=arrivals,
        output_lengths=parse_lengths(output_lengths),
        objectives=tuple(parse_objective(text) for text in objectives),
        **rest,
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadRequest(f"--body {text!r} is not a JSON object", str(error)) from error
