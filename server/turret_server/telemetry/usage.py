"""What was used by name, for the names that fit a budget: the rest is counted together."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

OTHER = "other"
_IDLE_S = 3600.0  # then a name makes room; so a day has at most 24 budgets of names


@dataclass(slots=True)
class Usage:
    """Counts of one label since it was given.

    Attributes:
        requests: that have ended.
        refused: of them, for a quota or a full queue.
        failed: of them, through a fault of the server.
        first_tokens: of requests that had one, and
        first_token_s: the sum of their times to it.
        answers: by finish reason.
        used_at: when the name was last seen, by the clock of `UsageByName`.
    """

    used_at: float = 0.0
    requests: int = 0
    refused: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    pages: int = 0
    first_tokens: int = 0
    first_token_s: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)


class UsageByName:
    """At most `limit` names at a time have a label of their own, all others share one.

    A name keeps its label until it leaves, or was not seen for an hour and another needs the
    room. Neither many names at once nor many in turn can fill a time series database.

    Args:
        limit: names with a label of their own.
        clock: monotonic seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._named: OrderedDict[str, Usage] = OrderedDict()  # the one seen last at the end
        self._other = Usage()

    def of(self, name: str) -> Usage:
        """The counts that a name is added to."""
        now = self._clock()
        found = self._named.get(name)
        if found is None:
            if name == OTHER or not self._make_room(now):
                return self._other
            found = self._named[name] = Usage()
        self._named.move_to_end(name)
        found.used_at = now
        return found

    def label(self, name: str) -> str:
        """What a name is called from now on: itself, or OTHER."""
        return OTHER if self.of(name) is self._other else name

    def forget(self, name: str) -> None:
        """Drop what is known of a name that has left."""
        self._named.pop(name, None)

    def keep(self, is_there: Callable[[str], bool]) -> None:
        """Drop the names that have left."""
        for name in [name for name in self._named if not is_there(name)]:
            del self._named[name]

    def __contains__(self, name: str) -> bool:
        """Has the name a label of its own?"""
        return name in self._named

    def items(self) -> Iterator[tuple[str, Usage]]:
        """Labels and their counts, OTHER last and only if there was need of it."""
        yield from self._named.items()
        if self._other.requests or self._other.answers:
            yield OTHER, self._other

    def _make_room(self, now: float) -> bool:
        if len(self._named) < self._limit:
            return True
        oldest = next(iter(self._named), None)
        if oldest is None or now - self._named[oldest].used_at < _IDLE_S:
            return False
        del self._named[oldest]
        return True
