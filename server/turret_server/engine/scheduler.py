"""The scheduler: who runs in this step, and what becomes of what came out. No torch.

It budgets tokens, not phases. Every running sequence wants its `remaining` tokens computed: one in
decode, the whole prompt at first; a long prompt is cut by the budget, and chunked prefill is no
special case. `schedule()` makes the shares of a step, `advance()` is told that it is on its way,
`update()` takes its tokens: nothing else changes a sequence, and `_release()` is the only way out.

The next step may be scheduled before `update()`. A token that is drawn and not yet known counts
like any other; a sequence that turns out to have ended has rows in that step which nobody reads.

The members of a fused request are scheduled together or not at all, and all sample in one step; the
queue, `running` and every decision know only the sequence that leads them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from contextlib import closing
from dataclasses import dataclass
from operator import attrgetter

from turret_server.engine import rooms
from turret_server.engine.blocks import BlockPool
from turret_server.engine.deadlines import Deadlines, queued_too_long
from turret_server.engine.fairness import FairQueue, prompt_parts, yields_to
from turret_server.engine.messages import ErrorInfo, TokenEvent, TokenLogprob
from turret_server.engine.pins import Pins
from turret_server.engine.rooms import AdapterGate, Room
from turret_server.engine.sequence import Sequence
from turret_server.engine.shares import Share, portion_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one step and of the engine."""

    max_running: int = 64  # sequences
    max_step_tokens: int = 256
    max_model_len: int = 2048


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a share, of a fused request the lead's, brought: a token, and log-probabilities."""

    token: int | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    error: ErrorInfo | None = None


class Scheduler:
    """Continuous batching with prefix reuse, fairness, preemption by recompute, and deadlines.

    Args:
        limits: of a step and of the main model.
        blocks: of the main model.
        adapters: the store of the main model.
        clock: monotonic seconds.
        auxiliaries: models that members may run; all have blocks of one size.
    """

    def __init__(
        self,
        limits: Limits,
        blocks: BlockPool,
        adapters: AdapterGate,
        clock: Callable[[], float] = time.monotonic,
        auxiliaries: Mapping[str, Room] | None = None,
    ) -> None:
        self.limits, self.blocks, self._clock = limits, blocks, clock
        self._rooms = {"": Room(blocks, limits.max_model_len, adapters), **(auxiliaries or {})}
        self._pins = Pins(self._rooms)
        self.waiting = FairQueue()
        self.running: list[Sequence] = []
        self._by_id: dict[str, Sequence] = {}
        self._table_rows = list(range(limits.max_running))
        self._deadlines = Deadlines()
        self._put_back: set[Sequence] = set()  # preempted, with a step still on its way
        self.preemptions = self.prefix_queries = self.prefix_hits = 0

    def obstacle(self, sequence: Sequence) -> ErrorInfo | None:
        """Why a request can never run, if so: its members do not fit side by side."""
        most = min(self.limits.max_running, self.limits.max_step_tokens)
        return rooms.obstacle(self._rooms, sequence, most)

    def add(self, sequence: Sequence) -> None:
        """Queue a request that nothing stands in the way of."""
        self._by_id[sequence.request.id] = sequence
        self._deadlines.add(sequence)
        self.waiting.push(sequence)

    def cancel(self, request_id: str) -> None:
        """The client is gone; unknown ids are ignored (the request may just have ended)."""
        if sequence := self._by_id.get(request_id):
            self._release(sequence)

    def schedule(self) -> tuple[list[Share], list[TokenEvent]]:
        """The shares of the next step, and the requests that ended without one."""
        ended = self._expire()
        budget, shares = self.limits.max_step_tokens, []
        has_room, preemptions, parts = True, self.preemptions, dict[str, int]()
        # Decodes first: a long prompt must not hold up those who stream.
        for sequence in sorted(self.running, key=attrgetter("is_in_prompt")):
            if not sequence.is_running or (sequence.draw_row >= 0 and self._is_full(sequence)):
                continue  # preempted for the sake of one before it; or ends when its token is known
            key, most = sequence.request.fairness_key, budget
            if sequence.is_in_prompt:
                parts = parts or prompt_parts(self.running, self.waiting, budget)
                # The members of a fusion end their prompts in one step.
                most = min(budget, max(parts[key], len(sequence.members) * bool(sequence.others)))
            portion = portion_of(sequence, most)
            if portion and self._reserve(sequence, portion):
                shares += portion
                budget -= (count := self._charge(portion))
                if key in parts:
                    parts[key] -= count
            elif most:
                has_room = False
        has_room &= self.preemptions == preemptions
        with closing(self.waiting.turns()) as turns:
            for sequence in turns if has_room else ():
                if budget == 0:
                    break
                if failure := rooms.failure(self._rooms, sequence):
                    ended.append(self._end(sequence, "error", error=failure))
                elif not self._find_rows(sequence, shares):
                    if not self._table_rows or self._is_ready(sequence):
                        break  # nobody overtakes who lacks rows alone, or blocks
                elif (portion := self._try_start(sequence, budget)) is None:
                    break
                elif portion:
                    shares += portion
                    budget -= self._charge(portion)
        # Rows of one model lie together, and of one recipe: one entry per adapter and step.
        live = [share for share in shares if share.sequence.is_running]
        live.sort(key=lambda share: (share.sequence.request.model, share.sequence.slots or ()))
        if live:
            self._pins.begin_step()
        return live, ended

    def advance(self, shares: Seq[Share], draw_rows: Mapping[Sequence, int]) -> None:
        """The step is on its way; whatever is planned next comes behind it.

        Args:
            shares: of the step.
            draw_rows: who draws a token, of a fused request the lead, and its row in the draw.
        """
        for share in shares:
            if share.sequence.is_running:  # or its blocks are gone
                share.sequence.num_computed += share.count
                self._register_blocks(share.sequence)
        for lead, row in draw_rows.items():
            for member in lead.members:
                member.tokens.append(0)
                member.draw_row = row

    def update(self, shares: Seq[Share], results: Seq[Sampled]) -> list[TokenEvent]:
        """Take what the oldest step on its way brought; returns the events for the clients."""
        self._pins.end_step()
        self._put_back.clear()
        events, now = [], self._clock()
        for share, result in zip(shares, results, strict=True):
            sequence = share.sequence
            if self._by_id.get(sequence.request.id) is not sequence:
                continue  # it follows another, or has left meanwhile
            if result.error is not None:
                events.append(self._end(sequence, "error", error=result.error))
                continue
            if result.prompt_logprobs is not None:
                assert sequence.prompt_logprobs is not None
                sequence.prompt_logprobs += result.prompt_logprobs
            if result.token is not None:
                events.append(self._learn(sequence, result, now))
        return events

    def _learn(self, sequence: Sequence, result: Sampled, now: float) -> TokenEvent:
        """The token that stood for itself as a 0."""
        token, sampling = result.token, sequence.request.sampling
        assert token is not None
        for member in sequence.members:
            member.tokens[-1] = token
            member.draw_row = -1
        event = TokenEvent(
            id=sequence.request.id,
            tokens=[token],
            logprobs=None if result.logprob is None else [result.logprob],
        )
        if sequence.first_token is None:
            assert sequence.started is not None
            sequence.first_token = now
            event.cached_tokens = sequence.num_cached
            event.queued_s = sequence.started - sequence.arrival
            event.prefill_s = now - sequence.started
            event.prompt_logprobs = sequence.prompt_logprobs
        stopped = token in sampling.stop_token_ids and sequence.num_output > sampling.min_tokens
        finished = sequence.grammar is not None and sequence.grammar.finished
        if stopped or finished:
            event.finish_reason, event.stop_token = "stop", token if stopped else None
        elif self._is_full(sequence):
            event.finish_reason = "length"
        if event.finish_reason:
            self._release(sequence)
        return event

    def _is_full(self, sequence: Sequence) -> bool:
        """Has it all the tokens that it may have?"""
        return sequence.num_output >= sequence.request.sampling.max_tokens or any(
            len(member.tokens) >= self._room(member).max_model_len for member in sequence.members
        )

    def _try_start(self, sequence: Sequence, budget: int) -> list[Share] | None:
        """Its first portion with all that it takes, or nothing; None for want of main blocks."""
        portion = portion_of(sequence, budget) if self._prepare(sequence) else []
        lacking = self._allocate(portion)
        if not portion or lacking is not None:
            self._drop_resources(sequence)
            return None if lacking == "" else []
        self.waiting.start(sequence)
        for member in sequence.members:
            member.table_row = self._table_rows.pop()
        if sequence.prompt_logprobs is not None and not sequence.num_output:
            sequence.prompt_logprobs = [None]  # all of them are computed, now or again
        self.running.append(sequence)
        if sequence.started is None:
            sequence.started = self._clock()
            for member in sequence.members:
                member.num_cached = max(0, member.num_computed - member.num_virtual)
                self.prefix_queries += member.num_prompt
                self.prefix_hits += member.num_cached
        return portion

    def _prepare(self, sequence: Sequence) -> bool:
        """Pin adapters and find prefixes; False while something of it is on its way."""
        if sequence in self._put_back or not self._pins.take(sequence):
            return False
        for member in sequence.members:
            self._match_prefix(member)
        return not any(self._prefix_in_flight(member) for member in sequence.members)

    def _is_ready(self, sequence: Sequence) -> bool:
        """Would `_prepare` succeed?"""
        ready = self._prepare(sequence)
        self._drop_resources(sequence)
        return ready

    def _match_prefix(self, sequence: Sequence) -> None:
        size, tokens = self.blocks.block_tokens, sequence.tokens
        if sequence.request.sampling.prompt_logprobs is not None and not sequence.num_output:
            return  # every prompt position must be computed
        # At least one token is computed, for its logits.
        sequence.extend_keys((len(tokens) - 1) // size, size)
        blocks = self._room(sequence).blocks
        found = blocks.match(sequence.block_keys[: (len(tokens) - 1) // size])
        blocks.hold(found)
        sequence.blocks, sequence.num_computed = found, len(found) * size
        sequence.num_registered = len(found)

    def _prefix_in_flight(self, sequence: Sequence) -> bool:
        """Somebody is computing the very block that comes next: wait for it (n > 1, bursts)."""
        index = len(sequence.blocks)
        return index < len(sequence.block_keys) and any(
            index < len(other.block_keys)
            and other.num_registered <= index
            and other.block_keys[index] == sequence.block_keys[index]
            for lead in self.running
            for other in lead.members
        )

    def _register_blocks(self, sequence: Sequence) -> None:
        full = sequence.num_computed // self.blocks.block_tokens
        if full == sequence.num_registered:
            return
        sequence.extend_keys(full, self.blocks.block_tokens)
        for i in range(sequence.num_registered, full):
            self._room(sequence).blocks.register(sequence.blocks[i], sequence.block_keys[i])
        sequence.num_registered = full

    def _reserve(self, sequence: Sequence, portion: list[Share]) -> bool:
        """Blocks for more tokens, preempting the youngest that has some of that model."""
        while (lacking := self._allocate(portion)) is not None:
            victim = max((s for s in self.running if s.runs(lacking)), key=attrgetter("arrival"))
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _allocate(self, portion: list[Share]) -> str | None:
        """Blocks for all shares; or for none, and the model that lacks them."""
        size = self.blocks.block_tokens
        for share in portion:
            if share.start + share.count > len(share.sequence.blocks) * size:
                break
        else:
            return None
        missing = [
            max(0, -(-(share.start + share.count) // size) - len(share.sequence.blocks))
            for share in portion
        ]
        taken: list[list[int]] = []
        for share, count in zip(portion, missing, strict=True):
            blocks = self._room(share.sequence).blocks.try_allocate(count)
            if blocks is None:
                for other, found in zip(portion, taken, strict=False):
                    self._room(other.sequence).blocks.release(found)
                return share.sequence.request.model
            taken.append(blocks)
        for share, blocks in zip(portion, taken, strict=True):
            share.sequence.blocks += blocks
        return None

    def _room(self, sequence: Sequence) -> Room:
        return self._rooms[sequence.request.model]

    def _charge(self, portion: list[Share]) -> int:
        count = sum([share.count for share in portion])
        self.waiting.charge(portion[0].sequence.request, count)
        return count

    def _find_rows(self, sequence: Sequence, shares: list[Share]) -> bool:
        """Rows to start; once, those of sequences whose tenants have more than their share."""
        if len(self._table_rows) >= len(sequence.members):
            return True
        if sequence.was_given_way:
            return False
        while len(self._table_rows) < len(sequence.members):
            victim = yields_to(sequence, self.running, self.limits.max_running)
            if victim is None or not (sequence.was_given_way or self._is_ready(sequence)):
                return False
            sequence.was_given_way = True
            self._preempt(victim)
            # It may start again in this very step, from elsewhere.
            shares[:] = [share for share in shares if share.sequence.is_running]
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        if self._pins.busy:
            self._put_back.add(sequence)
        self.running.remove(sequence)
        self.waiting.stop(sequence)
        self._drop_resources(sequence)
        self.waiting.push(sequence, front=True)

    def _expire(self) -> list[TokenEvent]:
        ended = []
        for request_id, to_start in self._deadlines.passed(self._clock()):
            sequence = self._by_id.get(request_id)
            if sequence is not None and not to_start:
                ended.append(self._end(sequence, "deadline"))
            elif sequence is not None and sequence.started is None:
                ended.append(self._end(sequence, "error", queued_too_long(sequence.request)))
        return ended

    def _end(self, sequence: Sequence, reason: str, error: ErrorInfo | None = None) -> TokenEvent:
        self._release(sequence)
        return TokenEvent(id=sequence.request.id, finish_reason=reason, error=error)

    def _release(self, sequence: Sequence) -> None:
        """The one way out: finished, cancelled, failed or late."""
        del self._by_id[sequence.request.id]
        if sequence.is_running:
            self.running.remove(sequence)
            self.waiting.stop(sequence)
        else:
            self.waiting.remove(sequence)
        self._drop_resources(sequence)

    def _drop_resources(self, sequence: Sequence) -> None:
        """Blocks, adapter pins and the table rows of all members go back, exactly once."""
        self._pins.drop(sequence)
        for member in sequence.members:
            self._room(member).blocks.release(member.blocks, member.request.cache_owner)
            member.blocks, member.num_computed, member.num_registered = [], 0, 0
            if member.table_row >= 0:
                self._table_rows.append(member.table_row)
                member.table_row = -1
