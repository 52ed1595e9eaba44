"""Whose turn it is: the waiting requests of several tenants. No torch.

Virtual token counters (Sheng et al. 2024, "Fairness in Serving Large Language Models") on two
levels: tenants share the engine by weight, and the lanes of a tenant, its models, share what it
gets. Whoever is served pays for the tokens, divided by its weight; who has paid least goes first.
Who comes back from idleness is lifted to the least of its siblings, so that silence earns no
credit; where nobody waits, to the last that did.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from itertools import chain, count
from typing import Generic, TypeVar

from turret_server.engine.messages import EngineRequest
from turret_server.engine.sequence import Sequence

_LOOKAHEAD = 64  # requests of a lane that one pass looks at although they cannot start
_MAX_IDLE = 1024  # siblings that are remembered although they wait for nothing


@dataclass(slots=True, eq=False)
class _Lane:
    """The waiting requests of one tenant for one model, first come first served."""

    paid: float = 0.0
    size: int = 0  # requests, with those that a pass has set aside
    is_placed: bool = False
    waiting: OrderedDict[Sequence, None] = field(default_factory=OrderedDict)
    num_passed: int = 0


@dataclass(slots=True, eq=False)
class _Tenant:
    """What one tenant has paid, and its lanes."""

    paid: float = 0.0
    size: int = 0
    is_placed: bool = False
    lanes: _Siblings[_Lane] = field(default_factory=lambda: _Siblings(_Lane))


T = TypeVar("T", _Lane, _Tenant)


class _Siblings(Generic[T]):
    """Those that take turns with each other, in a heap by what they have paid.

    What one pays and whether it still waits is found out when it comes up: payments only grow, so
    an entry is never below its place. Nobody has two (`is_placed`), or who sends and cancels again
    and again would fill the heap. Every operation takes logarithmic time, amortised.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._known: dict[str, T] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._order = count()  # who came first among equals
        self._floor = 0.0

    def __iter__(self) -> Iterator[T]:
        return iter(self._known.values())

    def named(self, name: str) -> T:
        """The one of this name."""
        if name not in self._known:
            self._known[name] = self._make()
        return self._known[name]

    def join(self, name: str, one: T) -> None:
        """It is about to wait; its `size` is still 0."""
        if len(self._known) > 2 * len(self._heap) + _MAX_IDLE:
            self._known = {n: known for n, known in self._known.items() if known.size}
            self._known[name] = one
        least = self.least()
        one.paid = max(one.paid, self._floor if least is None else least.paid)
        if not one.is_placed:
            self.put(one)

    def put(self, one: T) -> None:
        """Into the heap."""
        one.is_placed = True
        heappush(self._heap, (one.paid, next(self._order), one))

    def take(self) -> T:
        """Out of the heap: what `least` has just found."""
        one = heappop(self._heap)[2]
        one.is_placed = False
        return one

    def least(self) -> T | None:
        """Who has paid least of those that wait."""
        while self._heap:
            paid, _, one = self._heap[0]
            if one.size == 0:
                self.take()
                self._floor = max(self._floor, one.paid)
            elif paid < one.paid:
                heapreplace(self._heap, (one.paid, next(self._order), one))
            else:
                return one
        return None


class FairQueue:
    """Waiting sequences, and how many rows each tenant has meanwhile."""

    def __init__(self) -> None:
        self._tenants = _Siblings(_Tenant)
        self._size = 0
        self._rows = Counter[str]()

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        """All of them, in no order."""
        lanes = chain.from_iterable(tenant.lanes for tenant in self._tenants)
        return chain.from_iterable(lane.waiting for lane in lanes)

    def push(self, sequence: Sequence, *, front: bool = False) -> None:
        """Queue a sequence; `front` for one that was preempted."""
        request = sequence.request
        tenant, lane = self._place(request)
        if not lane.size:
            tenant.lanes.join(request.lane, lane)
        if not tenant.size:
            self._tenants.join(request.fairness_key, tenant)
        self._resize(tenant, lane, 1)
        lane.waiting[sequence] = None
        if front:
            lane.waiting.move_to_end(sequence, last=False)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out."""
        tenant, lane = self._place(sequence.request)
        del lane.waiting[sequence]
        self._resize(tenant, lane, -1)

    def start(self, sequence: Sequence) -> None:
        """Take a sequence out; it has rows from now on."""
        self.remove(sequence)
        self._rows[sequence.request.fairness_key] += len(sequence.members)

    def stop(self, sequence: Sequence) -> None:
        """It has rows no longer."""
        key = sequence.request.fairness_key
        self._rows[key] -= len(sequence.members)
        if not self._rows[key]:
            del self._rows[key]

    def charge(self, request: EngineRequest, tokens: int) -> None:
        """So many tokens are computed for a request."""
        tenant, lane = self._place(request)
        tenant.paid += tokens / request.fairness_weight
        lane.paid += tokens / request.lane_weight

    def turns(self) -> Generator[Sequence]:
        """One pass in the order in which they should start.

        What the caller starts (`start`) it charges before it goes on, and the next turn is decided
        with that; what it leaves is passed over, as are tenants with all the rows they may have. It
        removes nothing else meanwhile, and closes the iterator.
        """
        passed: list[tuple[_Lane, Sequence]] = []
        aside: list[tuple[_Siblings[_Lane], _Lane]] = []
        resting: list[_Tenant] = []
        try:
            while (tenant := self._tenants.least()) is not None:
                if (lane := tenant.lanes.least()) is None:
                    resting.append(self._tenants.take())
                elif not lane.waiting or lane.num_passed == _LOOKAHEAD:
                    aside.append((tenant.lanes, tenant.lanes.take()))
                elif self._is_at_its_limit((sequence := next(iter(lane.waiting))).request):
                    resting.append(self._tenants.take())
                else:
                    yield sequence
                    if sequence in lane.waiting:
                        del lane.waiting[sequence]
                        lane.num_passed += 1
                        passed.append((lane, sequence))
        finally:
            for lane, sequence in reversed(passed):
                lane.waiting[sequence] = None
                lane.waiting.move_to_end(sequence, last=False)
                lane.num_passed = 0
            for lanes, lane in aside:
                lanes.put(lane)
            for tenant in resting:
                self._tenants.put(tenant)

    def _is_at_its_limit(self, request: EngineRequest) -> bool:
        most = request.fairness_rows
        return most is not None and self._rows[request.fairness_key] >= most

    def _place(self, request: EngineRequest) -> tuple[_Tenant, _Lane]:
        tenant = self._tenants.named(request.fairness_key)
        return tenant, tenant.lanes.named(request.lane)

    def _resize(self, tenant: _Tenant, lane: _Lane, by: int) -> None:
        tenant.size += by
        lane.size += by
        self._size += by


def prompt_parts(running: Iterable[Sequence], waiting: FairQueue, budget: int) -> dict[str, int]:
    """How much of a step each tenant's prompts under way may take.

    Tenants share what the decodes leave by weight, and so does the one whose turn it is to start:
    a long prompt fills step after step, and must not hold up who came with a short one. What one
    does not need is for the others.

    Args:
        running: with decodes, which do not matter here.
        waiting: the queue.
        budget: tokens of the step.

    Returns:
        Tokens by tenant; together no more than the budget.
    """
    wanted, weights = Counter[str](), dict[str, float]()
    for sequence in running:
        if sequence.is_in_prompt:
            request = sequence.request
            wanted[request.fairness_key] += sum(member.remaining for member in sequence.members)
            weights[request.fairness_key] = request.fairness_weight
    rest = sum(weights.values())
    with closing(waiting.turns()) as turns:
        if (newcomer := next(turns, None)) and newcomer.request.fairness_key not in weights:
            rest += newcomer.request.fairness_weight
    parts = {}
    for key in sorted(weights, key=lambda key: wanted[key] / weights[key]):
        parts[key] = min(wanted[key], math.ceil(budget * min(1.0, weights[key] / rest)))
        budget -= parts[key]
        rest -= weights[key]
    return parts


def yields_to(needy: Sequence, running: Iterable[Sequence], max_rows: int) -> Sequence | None:
    """Who must give way to whose turn it is: the youngest of the tenant with most rows too many.

    A tenant's share of the rows is by weight among those that run and `needy`. Only who has more
    than its share gives way, and only to one that stays within its own, so they do not take turns
    at it.
    """
    rows, weights = dict[str, int](), dict[str, float]()
    for sequence in (needy, *running):  # at every step at which rows are lacking
        request = sequence.request
        key = request.fairness_key
        rows[key] = rows.get(key, 0) + 1 + len(sequence.others)
        weights[key] = request.fairness_weight
    share = max_rows / sum(weights.values())
    excess = {key: rows[key] - share * weight for key, weight in weights.items()}
    most = max(excess, key=excess.__getitem__)
    if excess[needy.request.fairness_key] > 0 or excess[most] <= 0:
        return None
    theirs = (sequence for sequence in running if sequence.request.fairness_key == most)
    return max(theirs, key=lambda sequence: sequence.arrival)
