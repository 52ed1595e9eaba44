"""When requests are late. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from turret_server.engine.messages import EngineRequest, ErrorInfo
from turret_server.engine.sequence import Sequence


class Deadlines:
    """Times by which requests must have started or ended, the next one first.

    Requests that have ended meanwhile stay until their time: an id, not the request.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, str, bool]] = []

    def add(self, sequence: Sequence) -> None:
        """Watch a request that has just arrived."""
        request, arrival = sequence.request, sequence.arrival
        if request.deadline_s is not None:
            heappush(self._heap, (arrival + request.deadline_s, request.id, False))
        if request.queue_s is not None:
            heappush(self._heap, (arrival + request.queue_s, request.id, True))

    def passed(self, now: float) -> Iterator[tuple[str, bool]]:
        """Ids whose time has passed, each told of once, and whether it was the one to start."""
        while self._heap and self._heap[0][0] < now:
            _, request_id, to_start = heappop(self._heap)
            yield request_id, to_start


def queued_too_long(request: EngineRequest) -> ErrorInfo:
    """What the client of a request that did not start in time is told."""
    return ErrorInfo(
        "ServerOverloaded",
        "the server is overloaded",
        f"the request could not start within {request.queue_s:g} s",
        "Try again later, or raise --max-wait-s.",
    )
