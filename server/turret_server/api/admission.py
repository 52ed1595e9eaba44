"""Who may enter: refusing early is cheap, for the server and for the client."""

from __future__ import annotations

from turret_server.engine.client import EngineClient
from turret_server.errors import BadRequest, EngineUnavailable, Overloaded


class Admission:
    """Counts what waits for its first token and refuses more than `max_waiting`.

    The count is taken when a request arrives, before its text is tokenised, so that a burst
    cannot slip past a statistic of the engine that is a moment old. What the engine itself
    reports as waiting (preempted requests among it) counts where it is more.
    """

    def __init__(self, engine: EngineClient, max_waiting: int) -> None:
        self._engine = engine
        self._max_waiting = max_waiting
        self.waiting = 0
        self.draining = False

    def enter(self, count: int) -> Ticket:
        """Admit a request of `count` answers.

        Raises:
            EngineUnavailable, Overloaded, BadRequest: as for `check`.
        """
        self.check(count)
        return Ticket(self, count)

    def check(self, count: int = 1) -> None:
        """Refuse a request of `count` answers if it could not be admitted now.

        Raises:
            EngineUnavailable: the engine is not up, or the server is shutting down.
            Overloaded: too many wait already.
            BadRequest: the request alone is more than may wait.
        """
        if self.draining:
            raise EngineUnavailable(
                "the server takes no new requests",
                "it is shutting down",
                "Send the request to another replica, or again later.",
            )
        if self._engine.ready is None:
            raise EngineUnavailable(
                "the model cannot answer yet",
                "the engine is starting or restarting",
                "Try again in a moment; GET /ready tells when.",
            )
        if count > self._max_waiting:
            raise BadRequest(
                f"the request asks for {count} answers",
                f"at most {self._max_waiting} can wait at once",
                "Split it.",
                param="n",
            )
        waiting = max(self.waiting, self._engine.stats.waiting)
        if waiting + count > self._max_waiting:
            raise Overloaded(
                "the server is overloaded",
                f"{waiting} answers wait for their first token; {self._max_waiting} may",
                "Try again later, or raise --max-waiting.",
            )


class Ticket:
    """The share of one request in the queue; a context manager that gives it back."""

    def __init__(self, admission: Admission, count: int) -> None:
        self._admission = admission
        self._left = count
        admission.waiting += count

    def grow(self, count: int) -> None:
        """So many answers more, of a request that was let in before it knew of them."""
        self._left += count
        self._admission.waiting += count

    def started(self) -> None:
        """One of the answers has its first token."""
        if self._left:
            self._left -= 1
            self._admission.waiting -= 1

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.waiting -= self._left
        self._left = 0
