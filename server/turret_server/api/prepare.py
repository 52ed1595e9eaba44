"""The steps between a valid body and a running generation, shared by chat and completions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

from fastapi import Request

from turret_server.api.account import Account, account
from turret_server.api.admission import Ticket
from turret_server.api.fairness import party_of
from turret_server.api.fusion import MemberPrompts, check_fused
from turret_server.api.generation import Choice, Generation
from turret_server.api.sampling import choice_sampling
from turret_server.api.schema.constrain import Constraint
from turret_server.api.schema.fields import GenerationBody
from turret_server.api.service import Service
from turret_server.api.threads import GRAMMARS, threads_for
from turret_server.engine.messages import EngineRequest, Sampling
from turret_server.errors import BadRequest
from turret_server.pipeline.recipe import Recipe
from turret_server.pipeline.stops import StopStrings
from turret_server.pipeline.text_stream import TextStream
from turret_server.telemetry import genai
from turret_server.telemetry.record import RequestRecord, record_of

T = TypeVar("T")

# Beyond this many characters, work on text would hold up the tokens of other streams.
_INLINE_CHARS = 4_000
_BODY_BYTES_PER_TOKEN = 4


async def admit(
    service: Service, body: GenerationBody, request: Request, count: int, held: ExitStack
) -> tuple[Ticket, Recipe, Account]:
    """Let a request in, or refuse it before any work is done for it.

    Args:
        service: of the app.
        body: of the request.
        request: as it came.
        count: answers to generate.
        held: gets what the request holds: its place in the queue, its adapters, its quotas.

    Raises:
        QuotaExceeded, QueueFull, ServerOverloaded, EngineUnavailable, NotFound, BadRequest.
    """
    record = record_of(request.scope)
    if count > service.settings.max_choices:
        raise BadRequest(
            f"the request asks for {count} answers",
            f"at most {service.settings.max_choices} are generated for one request",
            "Lower n or best_of, or send fewer prompts.",
            param="n",
        )
    # What the prompts take is known once they are tokenised: see `build_generation`.
    tokens = min(len(await request.body()) / _BODY_BYTES_PER_TOKEN, service.ready.max_model_len)
    ticket = held.enter_context(service.admission.enter(party_of(request), count, tokens))
    charged = held.enter_context(account(service.settings.tenancy, record))
    adapters = [(adapter.name, adapter.weight) for adapter in body.adapters or ()]
    fusion = None if body.fusion is None else body.fusion.spec()
    await service.adapters.fetch(
        service.recipes.mentioned(body.model, [name for name, _ in adapters], fusion)
    )
    recipe = service.recipes.resolve(body.model, adapters, fusion)
    held.enter_context(service.adapters.using(recipe))
    if body.timeout_s is not None and body.timeout_s > service.settings.max_timeout_s:
        raise BadRequest(
            f"'timeout_s' is {body.timeout_s:g}",
            f"at most {service.settings.max_timeout_s:g} seconds are allowed",
            param="timeout_s",
        )
    record.model, record.label, record.stream = recipe.model, recipe.label, bool(body.stream)
    record.choices, record.adapters = count, len(recipe.digests)
    return ticket, recipe, charged


async def off_loop(num_chars: int, work: Callable[[], T]) -> T:
    """Run work on text, in a thread when the text is long.

    Args:
        num_chars: of all texts that a request brings to such work, one after the other.
        work: on one of them, or on all.
    """
    if num_chars <= _INLINE_CHARS:
        return work()
    return await asyncio.get_running_loop().run_in_executor(threads_for(num_chars), work)


async def compile_constraint(service: Service, constraint: Constraint | None) -> str | None:
    """The grammar of a constraint, None without one.

    Raises:
        BadRequest: it is malformed or too large, or asks for what cannot be constrained.
    """
    if constraint is None:
        return None
    make, value, param = service.constraints, constraint.value, constraint.param
    compilers: dict[str, Callable[[], str]] = {
        "json_schema": lambda: make.json_schema(value, constraint.strict, param=param),
        "json_object": make.json_object,
        "regex": lambda: make.regex(value, param=param),
        "grammar": lambda: make.grammar(value, param=param),
        "choice": lambda: make.choice(value, param=param),
    }
    # Milliseconds, whatever the schema; still too long between two tokens of others.
    compiler = compilers[constraint.kind]
    return await asyncio.get_running_loop().run_in_executor(GRAMMARS, compiler)


def build_generation(
    service: Service,
    body: GenerationBody,
    record: RequestRecord,
    *,
    id_prefix: str,
    ticket: Ticket,
    fused: Sequence[MemberPrompts],
    prompts: Sequence[list[int]],
    max_tokens: Sequence[int],
    per_prompt: int,
    sampling: Sampling,
    continues: bool,
    skip_special_tokens: bool,
) -> Generation:
    """Fan a request out into the engine's requests.

    Args:
        service: of the app.
        body: of the request.
        record: of the request.
        id_prefix: "chatcmpl-" or "cmpl-".
        ticket: from `admit`.
        fused: beside each prompt: the recipe from `admit`, with the prompts of its other members.
        prompts: token ids, one or more; choice `i` of prompt `p` gets index `p * per_prompt + i`.
        max_tokens: of each prompt's answers; 0 discards the one token that the engine must make.
        per_prompt: answers for each prompt.
        sampling: from `base_sampling`.
        continues: the answer continues a text that is shown before it.
        skip_special_tokens: leave special tokens out of the text.
    """
    generation_id = uuid.uuid4().hex
    stop_ids = frozenset(body.stop_token_ids or ())
    stop = StopStrings(body.stop) if body.stop else None
    keep_stop = bool(body.include_stop_str_in_output)
    choices, recipe, party, settings = [], fused[0].recipe, ticket.party, service.settings
    shares = settings.share_prefixes and record.principal is not None
    check_fused(service, body, recipe, per_prompt * len(prompts), sampling)
    max_tokens = [
        members.fit(service, body, prompt, most)
        for members, prompt, most in zip(fused, prompts, max_tokens, strict=True)
    ]
    fusions = [members.fuse(prompt) for members, prompt in zip(fused, prompts, strict=True)]
    for prompt_index, prompt in enumerate(prompts):
        for i in range(per_prompt):
            index = len(choices)
            request = EngineRequest(
                id=f"{generation_id}-{index}",
                prompt=prompt,
                sampling=choice_sampling(sampling, body.seed, i, max_tokens[prompt_index]),
                adapters=recipe.adapters,
                cache_namespace=f"{'' if shares else record.tenant}/{body.cache_salt or ''}",
                cache_owner=record.tenant,
                fairness_key=party.name,
                fairness_weight=party.weight,
                fairness_rows=party.quotas.running_requests,
                lane=recipe.label,
                lane_weight=settings.adapter_shares.get(recipe.label, 1.0),
                deadline_s=body.timeout_s,
                queue_s=settings.max_wait_s,
                fusion=fusions[prompt_index],
            )
            text = TextStream(
                service.tokenizer,
                stop=stop,
                include_stop=keep_stop,
                skip_special_tokens=skip_special_tokens,
                continues=continues,
                min_tokens=sampling.min_tokens,
            )
            choices.append(
                Choice(
                    index=index,
                    prompt_index=prompt_index,
                    request=request,
                    text=text,
                    keep_stop_token=keep_stop,
                    reported_stops=stop_ids,
                    discard=max_tokens[prompt_index] == 0,
                    hides_cached=shares,
                )
            )
    prompt_tokens = [len(prompt) for prompt in prompts]
    record.prompt_tokens = sum(prompt_tokens)
    if record.span is not None:
        record.span |= genai.asked(
            "chat" if id_prefix == "chatcmpl-" else "text_completion",
            id_prefix + generation_id,
            recipe,
            service.recipes.base_names[0],
            sampling,
            max_tokens,
            per_prompt,
        )
    ticket.weigh(record.prompt_tokens)
    metrics = service.metrics
    metrics.asked_n.observe(per_prompt)
    for tokens, most in zip(prompt_tokens, max_tokens, strict=True):
        metrics.prompt_tokens.inc(tokens)
        metrics.prompt_size.observe(tokens)
        metrics.asked_tokens.observe(most)
    return Generation(
        id=id_prefix + generation_id,
        model=recipe.model,
        fingerprint=service.fingerprint,
        choices=choices,
        prompt_tokens=prompt_tokens,
        record=record,
        ticket=ticket,
        metrics=metrics,
    )
