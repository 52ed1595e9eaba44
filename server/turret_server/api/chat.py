"""POST /v1/chat/completions: answer conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from turret_server.api.chat_tools import ToolUse, tool_use
from turret_server.api.chunks import ChunkWriter
from turret_server.api.fairness import fairness_key
from turret_server.api.generation import Choice, Delta, Generation
from turret_server.api.json_body import JsonRoute
from turret_server.api.logprobs import chat_logprobs, prompt_logprobs
from turret_server.api.prepare import admit, build_generation, compile_constraint, off_loop
from turret_server.api.respond import respond
from turret_server.api.sampling import base_sampling, check_min_tokens, fit_max_tokens
from turret_server.api.schema.chat import ChatBody, plain_messages
from turret_server.api.schema.responses import ChatCompletion
from turret_server.api.service import Service, service_of
from turret_server.errors import PromptTooLong
from turret_server.telemetry.record import RequestRecord, record_of

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


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
) -> _Chat:
    per_prompt = body.n or 1
    ticket, recipe = await admit(service, body, record, per_prompt, held)
    limits = service.limits
    tools = tool_use(service, body)
    # At most one of both: tool_use() refuses a body that has a constraint and tools.
    grammar = await tools.grammar() or await compile_constraint(service, body.constraint())
    prompt = await _render(service, body, tools)
    param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = fit_max_tokens(
        getattr(body, param),
        len(prompt),
        limits,
        virtual_tokens=recipe.num_virtual_tokens,
        default=None,
        param=param,
        prompt_param="messages",
    )
    check_min_tokens(body, max_tokens)
    sampling = base_sampling(
        body,
        limits,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        grammar=grammar,
    )
    generation = build_generation(
        service,
        body,
        record,
        id_prefix="chatcmpl-",
        ticket=ticket,
        recipe=recipe,
        prompts=[prompt],
        max_tokens=[max_tokens],
        per_prompt=per_prompt,
        sampling=sampling,
        continues=bool(body.continue_final_message),
        skip_special_tokens=body.skip_special_tokens is not False and not tools.needs_special,
        fairness_key=fairness_key(request, record),
    )
    return _Chat(service, body, generation, tools)


async def _render(service: Service, body: ChatBody, tools: ToolUse) -> list[int]:
    limits = service.limits
    messages, chars = plain_messages(body.messages)
    if chars > limits.max_model_len * service.longest_token:
        raise PromptTooLong(
            f"'messages' have {chars} characters",
            f"the context holds {limits.max_model_len} tokens",
            "Shorten the conversation.",
            param="messages",
        )
    return await off_loop(
        chars,
        lambda: service.prompt.render(
            messages,
            tools.shown,
            body.add_generation_prompt is not False,
            bool(body.continue_final_message),
            body.chat_template_kwargs,
        ),
    )


class _Chat:
    """Writes the deltas of a generation down as chat messages."""

    def __init__(
        self, service: Service, body: ChatBody, generation: Generation, tools: ToolUse
    ) -> None:
        self._service = service
        self._body = body
        self._generation = generation
        self._tools = tools

    async def collect(self) -> dict[str, Any]:
        """Run to the end and return the response."""
        generation, body = self._generation, self._body
        texts: list[list[str]] = [[] for _ in generation.choices]
        logprobs: list[list[dict[str, Any]]] = [[] for _ in generation.choices]
        scored: list[dict[str, Any] | None] | None = None
        async with aclosing(generation.deltas(self._service.engine)) as deltas:
            async for delta in deltas:
                texts[delta.choice.index].append(delta.text)
                logprobs[delta.choice.index] += self._logprobs(delta)
                scored = scored or self._prompt_logprobs(delta)
        answer = {
            "id": generation.id,
            "object": "chat.completion",
            "created": generation.created,
            "model": generation.model,
            "system_fingerprint": generation.fingerprint,
            "choices": [
                self._choice(choice, "".join(texts[choice.index]), logprobs[choice.index])
                for choice in generation.choices
            ],
            "usage": generation.usage(),
        }
        if body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = scored
        return answer

    async def stream(self) -> AsyncGenerator[bytes]:
        """Run and yield one event per token; the role comes with the first."""
        generation, body = self._generation, self._body
        options = body.stream_options
        include_usage = bool(options and options.include_usage)
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
        async with aclosing(generation.deltas(self._service.engine)) as deltas:
            async for delta in deltas:
                index = delta.choice.index
                parser = parsers[index]
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
                yield writer.full(
                    index,
                    {
                        "delta": fields,
                        "logprobs": {"content": entries} if body.logprobs else None,
                        "finish_reason": finish,
                        "stop_reason": delta.choice.stop_reason,
                    },
                )
        if include_usage:
            yield writer.usage()

    def _choice(self, choice: Choice, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        message, finish_reason = self._tools.message(text, choice.finish_reason)
        return {
            "index": choice.index,
            "message": {"role": "assistant", "refusal": None, **message},
            "logprobs": {"content": logprobs} if self._body.logprobs else None,
            "finish_reason": finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _logprobs(self, delta: Delta) -> list[dict[str, Any]]:
        if not self._body.logprobs or not delta.logprobs:
            return []
        return chat_logprobs(self._service.tokenizer, delta.logprobs, self._body.top_logprobs or 0)

    def _prompt_logprobs(self, delta: Delta) -> list[dict[str, Any] | None] | None:
        top = self._body.prompt_logprobs
        if top is None or delta.prompt_logprobs is None:
            return None
        return prompt_logprobs(self._service.tokenizer, delta.prompt_logprobs, top)
