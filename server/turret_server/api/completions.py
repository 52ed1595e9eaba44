"""POST /v1/completions: continue texts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from turret_server.api.chunks import ChunkWriter
from turret_server.api.fusion import member_prompts
from turret_server.api.generation import Delta, Generation
from turret_server.api.json_body import JsonRoute
from turret_server.api.logprobs import CompletionLogprobs, prompt_logprobs
from turret_server.api.prepare import admit, build_generation, compile_constraint, off_loop
from turret_server.api.ranking import Ranking, ranking_of
from turret_server.api.respond import respond
from turret_server.api.sampling import base_sampling, check_min_tokens, fit_max_tokens
from turret_server.api.schema.completion import CompletionBody, Prompt
from turret_server.api.schema.responses import Completion
from turret_server.api.service import Service, service_of
from turret_server.errors import BadRequest, PromptTooLong
from turret_server.pipeline.auxiliary import AuxiliaryTokens
from turret_server.pipeline.fusion import MemberSpec
from turret_server.pipeline.recipe import Recipe
from turret_server.scorer.text import Instruction
from turret_server.telemetry.record import RequestRecord, record_of

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post(
    "/v1/completions",
    summary="Continue one or more texts",
    response_model=Completion,
    response_description="The continuations; with `stream`, server-sent events of the same shape.",
)
async def create_completion(
    body: CompletionBody, request: Request, service: Annotated[Service, Depends(service_of)]
) -> Response:
    """Continue texts or token ids, with the base model or any adapters.

    With `echo`, `logprobs` and `max_tokens: 0` or `1` this scores given texts.
    """
    record = record_of(request.scope)
    with ExitStack() as held:
        completion = await _prepare(body, request, service, record, held)
        closing = held.pop_all()
    return await respond(
        completion, request, closing, stream=bool(body.stream), ping_s=service.settings.ping_s
    )


async def _prepare(
    body: CompletionBody,
    request: Request,
    service: Service,
    record: RequestRecord,
    held: ExitStack,
) -> _Completion:
    ranking = ranking_of(service, body, record.started)
    per_prompt = ranking.candidates
    num_choices = len(body.prompt) * per_prompt
    ticket, recipe, charged = await admit(service, body, request, num_choices, held)
    limits = service.limits
    grammar = await compile_constraint(service, body.constraint())
    chars = sum(len(prompt) for prompt in body.prompt if isinstance(prompt, str))
    prompts = [
        await _encode(service, prompt, chars, body.add_special_tokens is not False, param)
        for prompt, param in _named(body.prompt)
    ]
    max_tokens = [
        fit_max_tokens(
            body.max_tokens,
            len(prompt),
            limits,
            virtual_tokens=recipe.num_virtual_tokens,
            default=service.settings.default_max_tokens,
            param="max_tokens",
            prompt_param=param,
        )
        for prompt, (_, param) in zip(prompts, _named(body.prompt), strict=True)
    ]
    check_min_tokens(body, min(max_tokens))
    echoed = body.logprobs if body.echo else None
    wanted = [top for top in (echoed, body.prompt_logprobs) if top is not None]
    sampling = base_sampling(
        body,
        limits,
        # The choice by log-probability needs the chosen token's own.
        logprobs=0 if body.logprobs is None and ranking.needs_logprobs else body.logprobs,
        prompt_logprobs=max(wanted, default=None),
        grammar=grammar,
    )
    generation = build_generation(
        service,
        body,
        record,
        id_prefix="cmpl-",
        ticket=ticket,
        fused=[
            await member_prompts(recipe, partial(_encode_member, service, body, given, ids, chars))
            for given, ids in zip(body.prompt, prompts, strict=True)
        ],
        prompts=prompts,
        max_tokens=max_tokens,
        per_prompt=per_prompt,
        sampling=sampling,
        continues=True,
        skip_special_tokens=body.skip_special_tokens is not False,
    )
    # A generator: token ids become text again for a scorer alone, 3 ms for 32,000 of them.
    await ranking.prepare((_instruction(service, prompt) for prompt in body.prompt), held)
    await charged.accept(generation)
    return _Completion(service, body, generation, prompts, ranking)


def _named(prompts: list[Prompt]) -> list[tuple[Prompt, str]]:
    if len(prompts) == 1:
        return [(prompts[0], "prompt")]
    return [(prompt, f"prompt[{i}]") for i, prompt in enumerate(prompts)]


def _instruction(service: Service, prompt: Prompt) -> Instruction:
    return Instruction.of_text(
        prompt if isinstance(prompt, str) else service.tokenizer.decode(prompt)
    )


async def _encode(
    service: Service,
    prompt: Prompt,
    chars: int,
    add_special: bool,
    param: str,
    auxiliary: AuxiliaryTokens | None = None,
) -> list[int]:
    limits = service.limits
    tokenizer, vocab_size = service.tokenizer, limits.vocab_size
    if auxiliary is not None and auxiliary.ids is not None:
        tokenizer, vocab_size = auxiliary.tokenizer, auxiliary.tokenizer.vocab_size
    if isinstance(prompt, str):
        # No token is longer than this many bytes, so the answer is known without tokenising.
        if len(prompt) > limits.max_model_len * service.longest_token:
            raise PromptTooLong(
                f"'{param}' has {len(prompt)} characters",
                f"the context holds {limits.max_model_len} tokens",
                "Shorten the prompt.",
                param=param,
            )
        ids = await off_loop(
            max(chars, len(prompt)),
            lambda: tokenizer.encode(prompt, add_special_tokens=add_special),
        )
        if not ids:
            raise BadRequest(
                f"'{param}' has no tokens", "there is nothing to continue", param=param
            )
        return ids
    if (largest := max(prompt)) >= vocab_size:
        raise BadRequest(
            f"'{param}' holds token {largest}",
            f"the vocabulary has tokens 0 to {vocab_size - 1}",
            "Tokenise the prompt with this model's tokenizer (POST /tokenize).",
            param=param,
        )
    return prompt


async def _encode_member(
    service: Service,
    body: CompletionBody,
    given: Prompt,
    ids: list[int],
    chars: int,
    member: MemberSpec,
    recipe: Recipe,
    param: str,
) -> list[int] | None:
    for name, is_given in (
        ("messages", member.messages is not None),
        ("system", member.system is not None),
        ("documents", not member.documents),
    ):
        if is_given:
            raise BadRequest(
                f"'{param}.{name}' belongs to a chat",
                "the request has a text to continue",
                "Give the member a prompt.",
                param=f"{param}.{name}",
            )
    auxiliary = service.auxiliaries.get(recipe.auxiliary)
    add_special = body.add_special_tokens is not False
    if member.prompt is not None:
        param = f"{param}.prompt"
        return await _encode(service, member.prompt, chars, add_special, param, auxiliary)
    if auxiliary is None or auxiliary.ids is None:
        return None
    if isinstance(given, str):
        return await _encode(service, given, chars, add_special, param, auxiliary)
    return auxiliary.translate(ids, param)


class _Completion:
    """Writes the deltas of a generation down as completions."""

    def __init__(
        self,
        service: Service,
        body: CompletionBody,
        generation: Generation,
        prompts: list[list[int]],
        ranking: Ranking,
    ) -> None:
        self._service = service
        self._body = body
        self._generation = generation
        self._prompts = prompts
        self._ranking = ranking
        self._logprobs: list[CompletionLogprobs] | None = None
        if body.logprobs is not None:
            self._logprobs = [self._new_logprobs(body.logprobs) for _ in generation.choices]

    async def collect(self) -> dict[str, Any]:
        """Run to the end and return the response."""
        generation = self._generation
        texts: list[list[str]] = [[] for _ in generation.choices]
        heads = [""] * len(texts)
        scored: list[list[dict[str, Any] | None] | None] = [None] * len(texts)
        seen = [False] * len(texts)
        async with aclosing(generation.deltas(self._service.engine)) as deltas:
            async for delta in deltas:
                index = delta.choice.index
                if not seen[index]:
                    seen[index] = True
                    heads[index], scored[index] = await self._begun(delta)
                texts[index].append(delta.text)
                if self._logprobs is not None and delta.logprobs:
                    self._logprobs[index].add(delta.logprobs)
        answers = ["".join(parts) for parts in texts]
        ranked = await self._ranking.choose(generation.choices, answers)
        answer = {
            "id": generation.id,
            "object": "text_completion",
            "created": generation.created,
            "model": generation.model,
            "system_fingerprint": generation.fingerprint,
            "choices": [
                {
                    "index": index,
                    "text": heads[choice.index] + answers[choice.index],
                    "logprobs": self._logprobs and self._logprobs[choice.index].take(),
                    "finish_reason": choice.finish_reason,
                    "stop_reason": choice.stop_reason,
                    "prompt_logprobs": scored[choice.index],
                    **ranked.beside(choice),
                }
                for index, choice in enumerate(ranked.choices)
            ],
            "usage": generation.usage(),
        }
        if ranked.summary is not None:
            answer["rerank"] = ranked.summary
        return answer

    async def stream(self) -> AsyncGenerator[bytes]:
        """Run and yield one event per token."""
        generation, body = self._generation, self._body
        options = body.stream_options
        include_usage = bool(options and options.include_usage)
        writer = ChunkWriter(
            generation,
            "text_completion",
            b',"text":',
            b"",
            include_usage=include_usage,
            continuous_usage=bool(options and options.continuous_usage_stats),
        )
        begun = [False] * len(generation.choices)
        async with aclosing(generation.deltas(self._service.engine)) as deltas:
            async for delta in deltas:
                index = delta.choice.index
                if begun[index] and delta.finish_reason is None and self._logprobs is None:
                    yield writer.text(index, delta.text)
                    continue
                text, extra = delta.text, {}
                if not begun[index]:
                    begun[index] = True
                    head, scored = await self._begun(delta)
                    text = head + text
                    if body.prompt_logprobs is not None:
                        extra["prompt_logprobs"] = scored
                yield writer.full(
                    index,
                    {
                        "text": text,
                        "logprobs": self._take(delta),
                        "finish_reason": delta.finish_reason,
                        "stop_reason": delta.choice.stop_reason,
                        **extra,
                    },
                )
        if include_usage:
            yield writer.usage()

    def _new_logprobs(self, top: int) -> CompletionLogprobs:
        skip_special = self._body.skip_special_tokens is not False
        detokenizer = self._service.tokenizer.detokenizer(
            skip_special_tokens=skip_special, continues=not self._body.echo
        )
        return CompletionLogprobs(self._service.tokenizer, detokenizer, top)

    async def _begun(self, delta: Delta) -> tuple[str, list[dict[str, Any] | None] | None]:
        """The echoed prompt, and what was asked for of its log-probabilities."""
        size = sum(1 + len(entry.top) for entry in delta.prompt_logprobs or () if entry)
        return await off_loop(size, lambda: (self._begin(delta), self._prompt_logprobs(delta)))

    def _begin(self, delta: Delta) -> str:
        """The echoed prompt, with its log-probabilities noted; "" without echo."""
        if not self._body.echo:
            return ""
        at = delta.choice.prompt_index
        text = self._body.prompt[at]
        if not isinstance(text, str):
            skip_special = self._body.skip_special_tokens is not False
            text = self._service.tokenizer.decode(text, skip_special_tokens=skip_special)
        if self._logprobs is not None:
            logprobs = self._logprobs[delta.choice.index]
            logprobs.add_prompt(self._prompts[at], delta.prompt_logprobs, text)
        return text

    def _take(self, delta: Delta) -> dict[str, Any] | None:
        if self._logprobs is None:
            return None
        logprobs = self._logprobs[delta.choice.index]
        logprobs.add(delta.logprobs or ())
        return logprobs.take()

    def _prompt_logprobs(self, delta: Delta) -> list[dict[str, Any] | None] | None:
        top = self._body.prompt_logprobs
        if top is None or delta.prompt_logprobs is None:
            return None
        return prompt_logprobs(self._service.tokenizer, delta.prompt_logprobs, top)
