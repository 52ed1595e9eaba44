"""The adapters that an engine was given, and that the next one gets again after a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as Seq

import msgspec

from turret_server import errors
from turret_server.engine import messages as m

log = logging.getLogger("turret.link")

_Load = Callable[[m.LoadAdapter], Awaitable[m.AdapterInfo]]
_Tell = Callable[[m.UnloadAdapter | m.HoldAdapters], Awaitable[object]]


class KeptAdapters:
    """Loads, unloads and holds adapters in the engine that is up, and remembers what it has.

    Args:
        load: asks the engine; it numbers the operation.
        tell: likewise, for what has no answer but that it is done.
    """

    def __init__(self, load: _Load, tell: _Tell) -> None:
        self._load, self._tell = load, tell
        self._loads: dict[str, m.LoadAdapter] = {}  # by digest: how each was loaded
        self._held: tuple[str, ...] = ()  # digests
        self._lost: set[str] = set()  # those that the engine could not load again; not held

    async def load(self, load: m.LoadAdapter, *, keep: bool) -> m.AdapterInfo:
        """Load an adapter; `keep` it for the next engine."""
        info = await self._load(load)
        if keep:  # what the folder holds later is not what was served under this digest
            self._loads[info.digest] = msgspec.structs.replace(load, digest=info.digest)
        if info.digest in self._lost:
            self._lost.remove(info.digest)
            await self._hold_again()
        return info

    def forget(self, digest: str) -> None:
        """The next engine does not get it."""
        self._loads.pop(digest, None)

    async def unload(self, digest: str) -> None:
        """Unload an adapter that is forgotten."""
        await self._tell(m.UnloadAdapter(operation="", digest=digest))

    async def hold(self, digests: Seq[str]) -> None:
        """Hold these and no others, in the next engine as well."""
        await self._hold(digests)
        self._held = tuple(digests)

    async def restore(self) -> None:
        """Give a new engine what the last one had."""
        known = dict(self._loads)
        results = await asyncio.gather(*map(self._load, known.values()), return_exceptions=True)
        failed = {d: r for d, r in zip(known, results, strict=True) if isinstance(r, BaseException)}
        for error in failed.values():
            log.error("an adapter could not be loaded again: %s", error)
        self._lost = set(failed)
        await self._hold_again()
        loaded = known.keys() - self._lost
        while gone := loaded - self._loads.keys():  # unloaded before it could be told
            await asyncio.gather(*map(self.unload, gone))
            loaded -= gone

    async def _hold(self, digests: Seq[str]) -> None:
        there = [digest for digest in digests if digest not in self._lost]
        await self._tell(m.HoldAdapters(operation="", digests=there))

    async def _hold_again(self) -> None:
        try:
            await self._hold(self._held)
        except errors.TurretError as error:
            log.error("adapters could not be pinned again: %s", error)
