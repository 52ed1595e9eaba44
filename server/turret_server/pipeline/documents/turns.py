"""Places that are few, for owners that take turns."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class Turns:
    """A semaphore whose places go round among those that wait, however many one of them asks for.

    Args:
        count: places.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        # Whose turn is next comes first. Who has gone away meanwhile is passed over.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def full(self) -> bool:
        """Would one that comes now have to wait?"""
        return self._free == 0

    def waiting(self, owner: str | None = None) -> int:
        """How many wait: of one owner, or of all."""
        queues = self._waiting.values() if owner is None else [self._waiting.get(owner, ())]
        return sum(not one.done() for queue in queues for one in queue)

    async def acquire(self, owner: str) -> None:
        """Take a place, or wait for one; `release` gives it back."""
        if self._free:
            self._free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was given one in the same moment
                self.release()
            raise

    def release(self) -> None:
        """Give a place back: to the next owner that waits."""
        while self._waiting:
            owner, queue = self._waiting.popitem(last=False)
            while queue and queue[0].done():
                queue.popleft()
            if not queue:
                continue
            queue.popleft().set_result(None)
            if queue:
                self._waiting[owner] = queue
            return
        self._free += 1
