"""From admitted request to a stream of deltas: fan-out, text, finish reasons, usage.

A *generation* is one HTTP request; each of its *choices* is one request of the engine. Chat and
completions differ in how they write deltas down, not in how these come about.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

from turret_server.api.admission import Ticket
from turret_server.engine.client import EngineClient
from turret_server.engine.messages import EngineRequest, Member, TokenEvent, TokenLogprob
from turret_server.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    ServerOverloaded,
    TurretError,
)
from turret_server.pipeline.text_stream import TextStream
from turret_server.telemetry.metrics import Metrics
from turret_server.telemetry.record import RequestRecord


@dataclass(slots=True, kw_only=True)
class Choice:
    """One answer in the making.

    Attributes:
        index: its place in the response.
        prompt_index: which prompt of the request it answers.
        request: as the engine gets it.
        text: turns its tokens into text.
        keep_stop_token: the text of the token that ended it belongs to the answer.
        reported_stops: stop tokens that the client named; ends of sequence are not reported.
        hides_cached: the cache is shared, and what of the prompt others have asked is not told.
        discard: the engine must generate a token, but the client asked for none.
        num_tokens: generated so far.
        logprob_sum: over the generated tokens, when the engine sends logprobs.
        finish_reason: None while running.
        stop_reason: the stop string or the client's stop token that ended it.
        cached_tokens: of its prompt.
    """

    index: int
    prompt_index: int
    request: EngineRequest
    text: TextStream
    keep_stop_token: bool = False
    reported_stops: frozenset[int] = frozenset()
    discard: bool = False
    hides_cached: bool = False
    num_tokens: int = 0
    logprob_sum: float = 0.0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    cached_tokens: int = 0

    @property
    def members(self) -> tuple[Member, ...]:
        """What runs beside the request's own model: none, but for fused requests."""
        return () if self.request.fusion is None else self.request.fusion.members

    def accept(self, event: TokenEvent) -> Delta:
        """Take what one step gave, and say what it adds to the answer."""
        if not self.hides_cached:
            self.cached_tokens = max(self.cached_tokens, event.cached_tokens)
        if self.discard:
            self.finish_reason = "length" if event.finish_reason else None
            return Delta(self, "", None, event.prompt_logprobs, self.finish_reason)
        self.num_tokens += len(event.tokens)
        if event.logprobs:
            self.logprob_sum += sum(entry.logprob for entry in event.logprobs)
        tokens = event.tokens
        if event.stop_token is not None and not self.keep_stop_token:
            tokens = tokens[:-1]
        text = self.text.push(tokens)
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason
            if event.stop_token in self.reported_stops:
                self.stop_reason = event.stop_token
            text += self.text.finish()
        if self.text.stopped is not None:
            self.finish_reason, self.stop_reason = "stop", self.text.stopped
        return Delta(self, text, event.logprobs, event.prompt_logprobs, self.finish_reason)


@dataclass(slots=True)
class Delta:
    """What one step added to one choice."""

    choice: Choice
    text: str
    logprobs: list[TokenLogprob] | None
    prompt_logprobs: list[TokenLogprob | None] | None
    finish_reason: str | None


@dataclass(slots=True, kw_only=True)
class Generation:
    """One HTTP request on its way through the engine.

    Attributes:
        id: shown to the client.
        created: Unix time in seconds.
        model: shown to the client.
        fingerprint: of the served weights and version.
        choices: in the order of their index.
        prompt_tokens: of each prompt.
        record: for the log.
        ticket: its share of the queue.
    """

    id: str
    model: str
    fingerprint: str
    choices: list[Choice]
    prompt_tokens: list[int]
    record: RequestRecord
    ticket: Ticket
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))

    async def deltas(self, engine: EngineClient) -> AsyncGenerator[Delta]:
        """Run all choices and yield what they bring, as it arrives.

        Closing the generator cancels every choice in the engine.

        Raises:
            TurretError: whatever the engine raises for one choice ends them all.
        """
        sources = [self._run(choice, engine) for choice in self.choices]
        source = sources[0] if len(sources) == 1 else merge(sources)
        try:
            async with aclosing(source):
                async for delta in source:
                    yield delta
        finally:
            self._account()

    def usage(self) -> dict[str, Any]:
        """Token counts so far; every prompt counts once, every generated token counts."""
        prompt, answer = sum(self.prompt_tokens), sum(c.num_tokens for c in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens()},
        }

    @property
    def member_tokens(self) -> int:
        """Tokens so far of the members of a fusion, counted as `usage` counts the request's own."""
        first = {choice.prompt_index: choice for choice in reversed(self.choices)}
        prompts = sum(len(m.prompt) for choice in first.values() for m in choice.members)
        return prompts + sum(choice.num_tokens * len(choice.members) for choice in self.choices)

    async def _run(self, choice: Choice, engine: EngineClient) -> AsyncGenerator[Delta]:
        metrics, record = self.metrics, self.record
        # The protocol promises an iterator that can be closed early: an async generator.
        events = cast(AsyncGenerator[TokenEvent], engine.generate(choice.request))
        first_at = last_at = prefill_s = 0.0
        outcome = "abort"  # also of a client that left: it was served until then
        async with aclosing(events):
            try:
                async for event in events:
                    now = time.perf_counter()
                    if event.tokens:
                        if not first_at:
                            first_at, prefill_s = now, event.prefill_s
                            self._first_token(event, now)
                        else:
                            metrics.token_gap_s.observe(now - last_at)
                        last_at = now
                    if event.finish_reason == "deadline":
                        raise DeadlineExceeded(
                            "the request was not finished in time",
                            f"its deadline of {choice.request.deadline_s:g} s has passed after "
                            f"{choice.num_tokens} tokens",
                            "Raise timeout_s, or ask for fewer tokens.",
                            param="timeout_s",
                        )
                    delta = choice.accept(event)
                    outcome = delta.finish_reason or outcome
                    yield delta
                    if delta.finish_reason is not None:
                        return
                raise EngineUnavailable(
                    "the answer was cut off", "the engine stopped sending", "Try again."
                )
            except TurretError as error:
                outcome = "error"
                if isinstance(error, ServerOverloaded):
                    error.retry_after_s = self.ticket.retry_after_s
                raise
            finally:
                end = last_at or time.perf_counter()
                metrics.total_s.observe(end - record.started)
                if first_at:
                    metrics.decode_s.observe(end - first_at)
                    metrics.inference_s.observe(end - first_at + prefill_s)
                if choice.num_tokens > 1:
                    metrics.token_s.observe((end - first_at) / (choice.num_tokens - 1))
                metrics.answer(record.label, outcome, choice.num_tokens)

    def _first_token(self, event: TokenEvent, now: float) -> None:
        self.ticket.started()
        record, metrics = self.record, self.metrics
        elapsed = now - record.started
        if record.first_token_s is None:
            record.first_token_s, record.queued_s = elapsed, event.queued_s
            record.prefill_s = event.prefill_s
        metrics.first_token_s.observe(elapsed)
        metrics.queued_s.observe(event.queued_s)
        metrics.prefill_s.observe(event.prefill_s)

    def _cached_tokens(self) -> int:
        """Per prompt, what its first choice found: the others find what that one computed."""
        first = {choice.prompt_index: choice.cached_tokens for choice in reversed(self.choices)}
        return sum(first.values())

    def _account(self) -> None:
        record = self.record
        record.completion_tokens = sum(choice.num_tokens for choice in self.choices)
        record.cached_tokens = self._cached_tokens()
        self.metrics.longest_answer.observe(max(c.num_tokens for c in self.choices))
        self.metrics.computed_size.observe(sum(self.prompt_tokens) - record.cached_tokens)
        record.member_tokens = self.member_tokens
        record.finish_reasons = [choice.finish_reason or "abort" for choice in self.choices]


async def merge(sources: Sequence[AsyncGenerator[Delta]]) -> AsyncGenerator[Delta]:
    """Interleave streams by arrival; the first error of any ends all."""
    queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()

    async def pump(source: AsyncGenerator[Delta]) -> None:
        try:
            async with aclosing(source):
                async for delta in source:
                    queue.put_nowait(delta)
        except Exception as error:  # raised again where the stream is read
            queue.put_nowait(error)
        queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(source)) for source in sources]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
