"""Whose turn it is: the waiting requests of several tenants. No torch.

Virtual token counters (Sheng et al. 2024, "Fairness in Serving Large Language Models"): every key
pays for the tokens it was served, divided by its weight, and the key that has paid least goes
first. A key that comes back from idleness is lifted to the least of the others, so that silence
earns no credit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from turret_server.engine.sequence import Sequence


class FairQueue:
    """Waiting sequences, first come first served within a key."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Sequence]] = {}
        self._paid: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[Sequence]:
        """In the order in which they should start; safe against removal while iterating."""
        for key in sorted(self._queues, key=self._paid.__getitem__):
            yield from tuple(self._queues.get(key, ()))

    def push(self, sequence: Sequence, *, front: bool = False) -> None:
        """Queue a sequence; `front` for one that was preempted."""
        key = sequence.request.fairness_key
        if key not in self._queues:
            self._queues[key] = deque()
            others = [self._paid[k] for k in self._queues if k != key]
            self._paid[key] = max(self._paid.get(key, 0.0), min(others, default=0.0))
        if front:
            self._queues[key].appendleft(sequence)
        else:
            self._queues[key].append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, to start or to drop it."""
        key = sequence.request.fairness_key
        self._queues[key].remove(sequence)
        if not self._queues[key]:
            del self._queues[key]

    def charge(self, key: str, tokens: int, weight: float = 1.0) -> None:
        """`key` was served so many tokens, for requests of this weight."""
        self._paid[key] = self._paid.get(key, 0.0) + tokens / weight
