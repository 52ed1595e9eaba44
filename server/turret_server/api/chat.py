"""POST /v1/chat/completions: answer conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from turret_server.api.chat_tools import ToolUse, tool_use
from turret_server.api.chunks import ChunkWriter
from turret_server.api.documents.answer import Deferred, DocumentNotes, PageByPage
from turret_server.api.documents.body import DocumentRoute
from turret_server.api.documents.prompt import (
    PAGE_ANSWER_TOKENS,
    room_for_prompt,
    show_documents,
    within,
)
from turret_server.api.documents.use import document_use
from turret_server.api.fusion import MemberPrompts, member_messages, member_prompts
from turret_server.api.generation import Choice, Delta, Generation
from turret_server.api.logprobs import chat_logprobs, prompt_logprobs
from turret_server.api.prepare import admit, build_generation, compile_constraint, off_loop
from turret_server.api.ranking import Ranking, check_documents, ranking_of
from turret_server.api.respond import Answer, respond
from turret_server.api.sampling import base_sampling, check_min_tokens, fit_max_tokens
from turret_server.api.schema.chat import ChatBody, num_chars, plain_messages, text_size
from turret_server.api.schema.responses import ChatCompletion
from turret_server.api.service import Service, service_of
from turret_server.errors import PromptTooLong, TurretError
from turret_server.pipeline.fusion import MemberSpec
from turret_server.pipeline.prompt import ChatPrompt
from turret_server.pipeline.recipe import Recipe
from turret_server.scorer.text import Instruction
from turret_server.telemetry.record import RequestRecord, record_of

Messages = list[dict[str, Any]]

router = APIRouter(route_class=DocumentRoute, tags=["OpenAI"])


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    response_model=ChatCompletion,
    response_description="The answers; with `stream`, server-sent events of chunks.",
)
async def create_chat_completion(
    body: ChatBody, request: Request, service: Annotated[Service, Depends(service_of)]
) -> Response:
    """Answer a conversation, with the base model or any adapters."""
    record = record_of(request.scope)
    with ExitStack() as held:
        chat = await _prepare(body, request, service, record, held)
        closing = held.pop_all()
    return await respond(
        chat, request, closing, stream=bool(body.stream), ping_s=service.settings.ping_s
    )


async def _prepare(
    body: ChatBody, request: Request, service: Service, record: RequestRecord, held: ExitStack
) -> Answer:
    ranking = ranking_of(service, body, record.started)
    per_prompt = ranking.candidates
    documents = document_use(service, body)
    if documents is not None:
        check_documents(ranking, documents)
    ticket, recipe, charged = await admit(service, body, request, per_prompt, held)
    limits = service.limits
    tools = tool_use(service, body)
    # At most one of them: tool_use() and document_use() refuse a body that has two.
    constraint = body.constraint() or (documents.constraint if documents else None)
    grammar = await tools.grammar() or await compile_constraint(service, constraint)
    sampling = base_sampling(
        body,
        limits,
        logprobs=(body.top_logprobs or 0) if body.logprobs or ranking.needs_logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        grammar=grammar,
    )
    param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    asked: int | None = getattr(body, param)

    def fitting(prompt_tokens: int) -> int:
        max_tokens = fit_max_tokens(
            asked,
            prompt_tokens,
            limits,
            virtual_tokens=recipe.num_virtual_tokens,
            default=PAGE_ANSWER_TOKENS if documents and documents.by_page else None,
            param=param,
            prompt_param="messages",
        )
        check_min_tokens(body, max_tokens)
        return max_tokens

    async def members_of(messages: Messages, bare: Messages) -> MemberPrompts:
        render = partial(_render_member, service, body, tools, messages, bare)
        return await member_prompts(recipe, render)

    def generation_of(
        prompts: list[list[int]], fused: list[MemberPrompts], body: ChatBody = body
    ) -> Generation:
        return build_generation(
            service,
            body,
            record,
            id_prefix="chatcmpl-",
            ticket=ticket,
            fused=fused,
            prompts=prompts,
            max_tokens=[fitting(len(prompt)) for prompt in prompts],
            per_prompt=per_prompt,
            sampling=sampling,
            continues=bool(body.continue_final_message),
            skip_special_tokens=body.skip_special_tokens is not False and not tools.needs_special,
        )

    if documents is None:
        messages, chars = plain_messages(body.messages)
        fused = await members_of(messages, messages)
        prompt = await _render(service, body, tools, messages, chars, "messages")
        generation = generation_of([prompt], [fused])
        await ranking.prepare([Instruction.of_chat(messages)], held)
        await charged.accept(generation)
        return _Chat(service, body, generation, tools, ranking)

    # What can be refused is, before anything is read.
    charged.check(tokens=fitting(1), pages=1)
    bare = documents.text([])
    members = await members_of(bare, bare)
    context = limits.max_model_len - recipe.num_virtual_tokens
    if recipe.fusion is not None:
        chars = sum(num_chars(message.get("content")) for message in bare)
        around = await _render(service, body, tools, bare, chars, "messages")
        context = members.shared_context(service, around)

    async def with_documents() -> Answer:
        room = room_for_prompt(context, asked)
        render = partial(_render_messages, service, body, tools)
        async with within(body.timeout_s) as left_s:
            shown = await show_documents(service, documents, room, render, record.tenant)
            fused = [await members_of(documents.text(one.sheets), bare) for one in shown]
        notes = DocumentNotes(documents, shown)
        charged.read_pages(notes.num_pages)
        service.documents.metrics.dropped(notes.num_dropped)
        ticket.grow(len(shown) - 1)
        left = body.model_copy(update={"timeout_s": left_s()})
        generation = generation_of([one.prompt for one in shown], fused, left)
        await charged.accept(generation)
        if documents.by_page:
            return PageByPage(service.engine, generation, notes, include_usage=_wants_usage(body))
        return _Chat(service, body, generation, tools, ranking, notes)

    return Deferred(with_documents)


async def _render(
    service: Service,
    body: ChatBody,
    tools: ToolUse,
    messages: list[dict[str, Any]],
    chars: int,
    param: str,
    template: ChatPrompt | None = None,
) -> list[int]:
    limits = service.limits
    if chars > limits.max_model_len * service.longest_token:
        raise PromptTooLong(
            f"{param!r} have {chars} characters",
            f"the context holds {limits.max_model_len} tokens",
            "Shorten the conversation.",
            param=param,
        )
    work = partial(_render_messages, service, body, tools, messages, template)
    # More than `chars`: calls, tools and the variables of the template are text, too.
    size = text_size([messages, tools.shown, body.chat_template_kwargs])
    return await off_loop(size, work)


def _render_messages(
    service: Service,
    body: ChatBody,
    tools: ToolUse,
    messages: list[dict[str, Any]],
    template: ChatPrompt | None = None,
) -> list[int]:
    return (template or service.prompt).render(
        messages,
        tools.shown,
        body.add_generation_prompt is not False,
        bool(body.continue_final_message),
        body.chat_template_kwargs,
    )


def _wants_usage(body: ChatBody) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


async def _render_member(
    service: Service,
    body: ChatBody,
    tools: ToolUse,
    own: Messages,
    bare: Messages,
    member: MemberSpec,
    recipe: Recipe,
    param: str,
) -> list[int] | None:
    messages = member_messages(member, own, bare, param)
    auxiliary = service.auxiliaries.get(recipe.auxiliary)
    template = service.prompt if auxiliary is None else auxiliary.chat
    if messages is None and template is service.prompt:
        return None
    messages = messages or own
    chars = sum(num_chars(message.get("content")) for message in messages)
    try:
        return await _render(service, body, tools, messages, chars, param, template)
    except TurretError as error:
        if error.param != param:
            error.param = f"{param}.{error.param}" if error.param else param
        raise


def _as_json(value: dict[str, Any]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


class _Chat:
    """Writes the deltas of a generation down as chat messages."""

    def __init__(
        self,
        service: Service,
        body: ChatBody,
        generation: Generation,
        tools: ToolUse,
        ranking: Ranking,
        notes: DocumentNotes | None = None,
    ) -> None:
        self._service = service
        self._body = body
        self._generation = generation
        self._tools = tools
        self._ranking = ranking
        self._notes = notes

    async def collect(self) -> dict[str, Any]:
        """Run to the end and return the response."""
        generation, body = self._generation, self._body
        texts: list[list[str]] = [[] for _ in generation.choices]
        # As JSON at once: the objects of a token with 20 alternatives take five times the memory.
        logprobs: list[list[msgspec.Raw]] = [[] for _ in generation.choices]
        scored: list[dict[str, Any] | None] | None = None
        async with aclosing(generation.deltas(self._service.engine)) as deltas:
            async for delta in deltas:
                texts[delta.choice.index].append(delta.text)
                logprobs[delta.choice.index] += map(_as_json, self._logprobs(delta))
                scored = scored or await self._prompt_logprobs(delta)
        answers = ["".join(parts) for parts in texts]
        ranked = await self._ranking.choose(generation.choices, answers)
        choices = [
            {
                "index": index,
                **await self._choice(choice, answers[choice.index], logprobs[choice.index]),
                **ranked.beside(choice),
            }
            for index, choice in enumerate(ranked.choices)
        ]
        answer = {
            "id": generation.id,
            "object": "chat.completion",
            "created": generation.created,
            "model": generation.model,
            "system_fingerprint": generation.fingerprint,
            "choices": choices,
            "usage": generation.usage(),
        }
        if body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = scored
        if self._notes is not None:
            answer["layout"] = self._notes.summary()
        if ranked.summary is not None:
            answer["rerank"] = ranked.summary
        return answer

    async def stream(self) -> AsyncGenerator[bytes]:
        """Run and yield one event per token; the role comes with the first."""
        generation, body = self._generation, self._body
        options = body.stream_options
        include_usage = _wants_usage(body)
        writer = ChunkWriter(
            generation,
            "chat.completion.chunk",
            b',"delta":{"content":',
            b"}",
            include_usage=include_usage,
            continuous_usage=bool(options and options.continuous_usage_stats),
        )
        parsers = [self._tools.stream() for _ in generation.choices]
        begun = [False] * len(generation.choices)
        plain = not body.logprobs
        notes = self._notes
        texts: list[list[str]] = [[] for _ in generation.choices]
        async with aclosing(generation.deltas(self._service.engine)) as deltas:
            async for delta in deltas:
                index = delta.choice.index
                parser = parsers[index]
                if notes is not None:
                    texts[index].append(delta.text)
                if parser is None and plain and begun[index] and delta.finish_reason is None:
                    yield writer.text(index, delta.text)
                    continue
                finish = delta.finish_reason
                fields: dict[str, Any]
                if parser is None:
                    fields = {"content": delta.text}
                else:
                    fields = parser.push(delta.text, last=finish is not None)
                    finish = parser.finish_reason(finish)
                if not begun[index]:
                    begun[index] = True
                    fields = {"role": "assistant", **fields}
                entries = self._logprobs(delta)
                beside = None
                if notes is not None and finish is not None:
                    fields |= await notes.fields("".join(texts[index]))
                    beside = {"layout": notes.summary()}
                yield writer.full(
                    index,
                    {
                        "delta": fields,
                        "logprobs": {"content": entries} if body.logprobs else None,
                        "finish_reason": finish,
                        "stop_reason": delta.choice.stop_reason,
                    },
                    beside,
                )
        if include_usage:
            yield writer.usage()

    async def _choice(
        self, choice: Choice, text: str, logprobs: list[msgspec.Raw]
    ) -> dict[str, Any]:
        message, finish_reason = self._tools.message(text, choice.finish_reason)
        if self._notes is not None:
            message |= await self._notes.fields(text)
        return {
            "message": {"role": "assistant", "refusal": None, **message},
            "logprobs": {"content": logprobs} if self._body.logprobs else None,
            "finish_reason": finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _logprobs(self, delta: Delta) -> list[dict[str, Any]]:
        if not self._body.logprobs or not delta.logprobs:
            return []
        return chat_logprobs(self._service.tokenizer, delta.logprobs, self._body.top_logprobs or 0)

    async def _prompt_logprobs(self, delta: Delta) -> list[dict[str, Any] | None] | None:
        top, entries = self._body.prompt_logprobs, delta.prompt_logprobs
        if top is None or entries is None:
            return None
        work = partial(prompt_logprobs, self._service.tokenizer, entries, top)
        return await off_loop(len(entries) * (1 + top), work)
