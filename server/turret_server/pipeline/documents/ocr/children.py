"""The children of a pool: who has one, who waits for one, which are idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from turret_server.errors import EngineUnavailable
from turret_server.pipeline.documents.ocr.child import Child
from turret_server.pipeline.documents.ocr.settings import PictureSettings
from turret_server.pipeline.documents.turns import Turns


class Children:
    """Lends at most `workers` children; owners take turns."""

    def __init__(self, settings: PictureSettings) -> None:
        self._settings = settings
        self._places = Turns(settings.workers)
        self._all: set[Child] = set()
        self._idle: dict[Child, asyncio.TimerHandle] = {}  # the last is the latest used
        self._closed = False
        self.waiting = 0

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return [child.pid for child in self._all if child.pid is not None]

    @asynccontextmanager
    async def lend(self, document: int, owner: str) -> AsyncIterator[Child]:
        """A child, preferably one that has this document already.

        Raises:
            EngineUnavailable: they are ended.
        """
        self.waiting += 1
        try:
            await self._places.acquire(owner)
        finally:
            self.waiting -= 1
        if self._closed:
            self._places.release()
            raise EngineUnavailable("documents cannot be read", "the server is shutting down")
        child = self._take(document)
        try:
            yield child
        finally:
            exchange = child.exchange
            if exchange is None:
                self._give_back(child)
            else:  # its borrower was cancelled: it is free once it has finished the page
                exchange.add_done_callback(lambda _: self._give_back(child))

    async def close(self) -> None:
        """End them all, and lend no more."""
        self._closed = True
        for timer in self._idle.values():
            timer.cancel()
        self._idle.clear()
        children, self._all = self._all, set()
        await asyncio.gather(*(child.close() for child in children))

    def _take(self, document: int) -> Child:
        child = next((idle for idle in self._idle if idle.document == document), None)
        child = child or next(reversed(self._idle), None)
        if child is None:
            child = Child(self._settings)
            self._all.add(child)
        else:
            self._idle.pop(child).cancel()
        return child

    def _give_back(self, child: Child) -> None:
        if self._closed or child.pid is None:
            child.kill()  # it may have been starting when the others were ended
            self._all.discard(child)
        else:
            loop = asyncio.get_running_loop()
            self._idle[child] = loop.call_later(self._settings.idle_s, self._retire, child)
        self._places.release()

    def _retire(self, child: Child) -> None:
        del self._idle[child]
        self._all.discard(child)
        child.kill()
