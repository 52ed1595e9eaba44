"""Adapters of the shelf: loaded when first asked for, and read again when they change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from turret_adapters.catalog import AdapterRecord, Catalog
from turret_adapters.shelf import AdapterShelf
from turret_server.engine.client import EngineClient
from turret_server.pipeline.recipe import RecipeBook
from turret_server.sources.adapter import LocalAdapter


@dataclass(frozen=True, slots=True)
class _Shelved:
    """An adapter that was loaded from the shelf.

    Attributes:
        state: of its folder when it was read.
        restarts: of the engine that has it. One that restarted gets back what was loaded by name;
            a thousand others would keep it away.
    """

    state: object
    restarts: int


class ShelvedAdapters:
    """What was loaded from the shelf, and the loads under way.

    Args:
        shelf: what is offered.
        engine: asked how often it was restarted.
        catalog: of what is served.
        recipes: names that are no adapters.
        load: serves a folder under a name, if the name is still free for it.
        unload: stops serving a name.
    """

    def __init__(
        self,
        shelf: AdapterShelf,
        engine: EngineClient,
        catalog: Catalog,
        recipes: RecipeBook,
        load: Callable[[str, LocalAdapter], Awaitable[AdapterRecord | None]],
        unload: Callable[[str], Awaitable[None]],
    ) -> None:
        self._shelf = shelf
        self._engine = engine
        self._catalog = catalog
        self._recipes = recipes
        self._load = load
        self._unload = unload
        self._fetches: dict[str, asyncio.Task[None]] = {}  # under way
        self._loaded: dict[str, _Shelved] = {}

    def __contains__(self, name: str) -> bool:
        """Does the name mean what was loaded from the shelf?"""
        return name in self._loaded

    def is_free(self, name: str) -> bool:
        """May the name mean what is on the shelf, or does it mean something else?"""
        taken = self._catalog.get(name) is not None or self._recipes.served(name)
        return name in self._loaded or not taken

    def forget(self, name: str) -> None:
        """The name means something else from now on, or nothing."""
        self._loaded.pop(name, None)

    async def fetch(self, names: Iterable[str]) -> None:
        """Load those of the names that the shelf offers and that the engine does not have.

        A folder that changed since is read again, and one that is gone is served no longer.

        Raises:
            TurretError: the adapter on the shelf cannot be served.
        """
        for name in names:
            while (found := self._to_fetch(name)) is not None:
                if name not in self._fetches:
                    fetch = asyncio.get_running_loop().create_task(self._fetch(name, *found))
                    self._fetches[name] = fetch
                # Shielded: the client that goes away is not the only one that waits.
                await asyncio.shield(self._fetches[name])
            if name in self._loaded and self._shelf.find(name) is None:
                await self._unload(name)

    async def sweep(self) -> None:
        """Stop serving what is gone from the shelf."""
        if self._loaded:
            for name in self._loaded.keys() - set(self._shelf.names()):
                if name in self._loaded:  # another sweep may have been faster
                    await self._unload(name)

    def _to_fetch(self, name: str) -> tuple[Path, Path] | None:
        """Folder and shelf of what must be loaded before the name can be used."""
        known, record = self._loaded.get(name), self._catalog.get(name)
        if not self.is_free(name):
            return None
        found = self._shelf.find(name)
        if found is None or known is None or record is None:
            return found
        is_lost = not record.pinned and known.restarts != self._engine.restarts
        return found if is_lost or known.state != self._shelf.state(found[0]) else None

    async def _fetch(self, name: str, folder: Path, shelf: Path) -> None:
        try:
            restarts, state = self._engine.restarts, self._shelf.state(folder)
            record = await self._load(name, LocalAdapter(str(folder), str(folder), (str(shelf),)))
            if record is not None and self._catalog.get(name) is record:  # or it is unloaded again
                self._loaded[name] = _Shelved(state, restarts)
        finally:
            del self._fetches[name]
