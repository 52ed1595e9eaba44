"""What a span says of a request, by the names of OpenTelemetry's GenAI conventions.

Source: open-telemetry/semantic-conventions-genai, status "development"; `gen_ai.latency.*` are
vLLM's. Never text: no prompt, no answer, no stop strings, no messages of errors, no keys.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from turret_server.engine.messages import Sampling
from turret_server.pipeline.recipe import Recipe
from turret_server.telemetry.record import Attributes, RequestRecord

PROVIDER = "turret"


def asked(
    operation: str,
    response_id: str,
    recipe: Recipe,
    base: str,
    sampling: Sampling,
    max_tokens: Sequence[int],
    choices: int,
) -> Attributes:
    """Attributes of a generation that is about to run.

    Args:
        operation: "chat" or "text_completion".
        response_id: as the client gets it.
        recipe: what answers.
        base: the base model's canonical name. A stack on it is told apart: "base:stack".
        sampling: with the defaults filled in.
        max_tokens: of each prompt's answers.
        choices: for each prompt.
    """
    found: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": base if recipe.label == base else f"{base}:{recipe.label}",
        "gen_ai.response.model": recipe.model,
        "gen_ai.response.id": response_id,
        "gen_ai.request.max_tokens": max(max_tokens),
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.choice.count": choices,
        "turret.constrained": sampling.grammar is not None,
        "turret.fused": recipe.fusion is not None,
        "turret.adapter.count": len(recipe.digests),
    }
    if sampling.top_k:
        found["gen_ai.request.top_k"] = sampling.top_k
    if recipe.digests:
        found["turret.adapter.name"] = recipe.label
        found["turret.adapter.digests"] = recipe.digests
    return found


def ended(record: RequestRecord, status: int) -> Attributes:
    """Attributes of any request that has ended; status 0 is a client that left before."""
    found: Attributes = {
        "turret.request.id": record.id,
        "http.response.status_code": status or 499,
    }
    if record.tenant:
        found["turret.tenant"] = record.tenant
    if record.error is not None:
        found["error.type"] = record.error.code or record.error.type
    if record.disconnected:
        found["turret.disconnected"] = True
    if record.pages:
        found["turret.document.pages"] = record.pages
    if not record.label:
        return found
    elapsed_s = time.perf_counter() - record.started
    found |= {
        "gen_ai.request.stream": record.stream,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.response.finish_reasons": record.finish_reasons,
        "gen_ai.latency.e2e": elapsed_s,
    }
    if record.first_token_s is not None:
        decode_s = elapsed_s - record.first_token_s
        found |= {
            "gen_ai.response.time_to_first_chunk": record.first_token_s,
            "gen_ai.latency.time_to_first_token": record.first_token_s,
            "gen_ai.latency.time_in_queue": record.queued_s,
            "gen_ai.latency.time_in_model_prefill": record.prefill_s,
            "gen_ai.latency.time_in_model_decode": decode_s,
            "gen_ai.latency.time_in_model_inference": record.prefill_s + decode_s,
        }
    return found
