"""Who may enter: refusing early is cheap, for the server and for the client."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from turret_server.api.drain import DrainRate
from turret_server.api.fairness import Party
from turret_server.engine.client import EngineClient
from turret_server.engine.messages import EngineReady
from turret_server.errors import BadRequest, EngineUnavailable, Overloaded, ServerOverloaded

_LONGEST_S = 60.0  # OpenAI's clients heed no longer wait
_SHORTEST_S = 0.05


def engine_ready(engine: EngineClient) -> EngineReady:
    """What the engine said of the base model when it came up.

    Raises:
        EngineUnavailable: it is not up.
    """
    if engine.ready is None:
        raise EngineUnavailable(
            "the model cannot answer yet",
            "the engine is starting or restarting",
            "Try again in a moment; GET /ready tells when.",
        )
    return engine.ready


class QueueFull(Overloaded):
    """The caller's part of the queue is full."""

    code = "queue_full"


@dataclass(slots=True)
class _Part:
    """What waits of one party."""

    weight: float
    is_capped: bool
    answers: int = 0
    tokens: float = 0.0

    @classmethod
    def of(cls, party: Party) -> _Part:
        return cls(party.weight, party.quotas.running_requests is not None)


class Admission:
    """Counts what waits for its first token, and refuses what would wait too long.

    The count is taken when a request arrives, before its text is tokenised or its documents are
    read, so that a burst cannot slip past a statistic of the engine that is a moment old. Who is
    let in has its place: nothing is turned away after work was done for it. What the engine itself
    reports as waiting (preempted requests among it) counts where it is more.

    A party that is one of several may have as many answers waiting as places are left free (dynamic
    thresholds, Choudhury and Hahne 1998): one alone fills half of the queue, and whoever comes then
    finds room.

    A party with a quota of running requests may wait although rows are free. What it waits tells
    nothing of the others' wait, and its own is bounded by the engine alone.

    Args:
        engine: what they wait for.
        max_waiting: answers.
        max_wait_s: who would wait longer for its first token is refused.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engine: EngineClient,
        max_waiting: int,
        max_wait_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._max_waiting, self._max_wait_s = max_waiting, max_wait_s
        self._drain = DrainRate(clock)
        self._parts: dict[str, _Part] = {}
        self.waiting = 0
        self._moving, self._tokens = 0, 0.0  # of those without a quota of running requests
        self.draining = False

    def enter(self, party: Party, count: int, tokens: float) -> Ticket:
        """Admit a request of `count` answers with about so many tokens of prompt.

        Raises:
            EngineUnavailable, ServerOverloaded, QueueFull, BadRequest: as for `check`.
        """
        self.check(party, count, tokens)
        return Ticket(self, party, count, tokens)

    def check(self, party: Party, count: int = 1, tokens: float = 0.0) -> None:
        """Refuse a request of `count` answers if it could not be admitted now.

        Raises:
            EngineUnavailable: the engine is not up, or the server is shutting down.
            ServerOverloaded: too many wait already, whoever asks.
            QueueFull: too many of the party's wait already.
            BadRequest: the request alone is more than may wait.
        """
        self.check_draining()
        engine_ready(self._engine)
        quotas = party.quotas
        most = self._max_waiting
        if quotas.queued_requests is not None:
            most = min(most, quotas.queued_requests)
        if count > most:
            raise BadRequest(
                f"the request asks for {count} answers",
                f"at most {most} can wait at once",
                "Split it.",
                param="n",
            )
        waiting = max(self.waiting, self._engine.stats.waiting)
        if waiting + count > self._max_waiting:
            raise self._overloaded(
                party,
                f"{waiting} answers wait for their first token; {self._max_waiting} may",
                "Try again later, or raise --max-waiting.",
            )
        mine = self._parts.get(party.name) or _Part.of(party)
        if party.has_peers:
            most = min(most, self._max_waiting - waiting)
        if mine.answers + count > most:
            why = f"{mine.answers} of its answers wait for their first token; {most} may"
            raise self._queue_full(party, why)
        most_tokens = quotas.queued_tokens
        # A prompt that is longer than all that may wait can wait alone.
        if most_tokens is not None and mine.tokens and mine.tokens + tokens > most_tokens:
            why = f"some {mine.tokens:.0f} tokens of its prompts wait; {most_tokens} may"
            raise self._queue_full(party, why)
        if self._moving and (wait_s := self.wait_s(party, count, tokens)) > self._max_wait_s:
            why = f"the request would wait some {wait_s:.0f} s; {self._max_wait_s:g} may pass"
            if party.has_peers:
                raise self._queue_full(party, why)
            raise self._overloaded(party, why, "Try again later, or raise --max-wait-s.")

    def check_draining(self) -> None:
        """Refuse what comes while the server ends; for requests that do not wait for the engine.

        Raises:
            EngineUnavailable: the server is shutting down.
        """
        if self.draining:
            raise EngineUnavailable(
                "the server takes no new requests",
                "it is shutting down",
                "Send the request to another replica, or again later.",
            )

    def wait_s(self, party: Party, count: int = 0, tokens: float = 0.0) -> float:
        """How long a request would wait for the first token of its last answer; 0 where unknown.

        The queue is served in turns, so a party waits for its own requests at its share of the
        speed, and never for more than all of them.
        """
        self._drain.follow(waits=self._moving > 0)
        parts = {party.name: _Part.of(party), **self._parts}
        own = parts[party.name]
        if own.is_capped:
            return 0.0
        turns = sum(part.weight for part in parts.values() if not part.is_capped) / own.weight
        return self._drain.wait_s(
            min(self._moving + count, (own.answers + count) * turns),
            min(self._tokens + tokens, (own.tokens + tokens) * turns),
        )

    def move(self, party: Party, answers: int, tokens: float) -> None:
        """So many more wait of a party, or fewer."""
        self._drain.follow(waits=self._moving > 0)
        part = self._parts.setdefault(party.name, _Part.of(party))
        part.answers += answers
        part.tokens += tokens
        self.waiting += answers
        if not part.is_capped:
            self._moving += answers
            self._tokens += tokens
        if not part.answers:
            if not part.is_capped:
                self._tokens -= part.tokens  # what is left of it is rounding
            del self._parts[party.name]

    def started(self, party: Party, tokens: float) -> None:
        """An answer has its first token."""
        is_capped = self._parts[party.name].is_capped
        self.move(party, -1, -tokens)
        if not is_capped:
            self._drain.started(tokens)

    def retry_after_s(self, party: Party) -> float:
        """When to come again: by then about half of what keeps it waiting has been served.

        Not all at once, or most would be refused again.
        """
        spread = 0.5 + random.random()
        return min(max((self.wait_s(party) or 2.0) / 2 * spread, _SHORTEST_S), _LONGEST_S)

    def _overloaded(self, party: Party, why: str, fix: str) -> ServerOverloaded:
        error = ServerOverloaded("the server is overloaded", why, fix)
        error.retry_after_s = self.retry_after_s(party)
        return error

    def _queue_full(self, party: Party, why: str) -> QueueFull:
        name = party.name[:64]
        error = QueueFull(f"the queue of {name!r} is full", why, "Send fewer at once.")
        error.retry_after_s = self.retry_after_s(party)
        return error


class Ticket:
    """The share of one request in the queue; a context manager that gives it back.

    Attributes:
        party: in whose part of the queue it waits.
    """

    def __init__(self, admission: Admission, party: Party, count: int, tokens: float) -> None:
        self._admission, self.party = admission, party
        self._left, self._tokens = count, tokens
        admission.move(party, count, tokens)

    def grow(self, count: int) -> None:
        """So many answers more, of a request that was let in before it knew of them."""
        self._left += count
        self._admission.move(self.party, count, 0)

    def weigh(self, tokens: float) -> None:
        """The prompts have been counted."""
        if self._left:
            self._admission.move(self.party, 0, tokens - self._tokens)
            self._tokens = tokens

    def started(self) -> None:
        """One of the answers has its first token."""
        if self._left:
            tokens = self._tokens / self._left
            self._left -= 1
            self._tokens -= tokens
            self._admission.started(self.party, tokens)

    @property
    def retry_after_s(self) -> float:
        """When to come again, for a request that did not start in time."""
        return self._admission.retry_after_s(self.party)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        if self._left:
            self._admission.move(self.party, -self._left, -self._tokens)
        self._left = 0
