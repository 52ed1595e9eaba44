"""Loading and unloading while serving: the catalog and the engine kept in step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from turret_adapters.catalog import AdapterRecord, Catalog, name_problem
from turret_adapters.derivation import Derivation
from turret_adapters.shelf import AdapterShelf
from turret_server.api.adapter_records import checked_digest, make_record, not_loaded, taken
from turret_server.api.changes import Changes, blame, check_names
from turret_server.api.held_folders import HeldFolders
from turret_server.api.shelved import ShelvedAdapters
from turret_server.api.threads import in_thread
from turret_server.engine.client import EngineClient
from turret_server.errors import BadRequest, Conflict, Forbidden, NotFound, TurretError
from turret_server.pipeline.names import owned_name
from turret_server.pipeline.recipe import Recipe, RecipeBook
from turret_server.sources.adapter import AdapterSources, LocalAdapter
from turret_server.sources.cached import release
from turret_server.telemetry.logging import logger
from turret_server.telemetry.metrics import Metrics


class AdapterLoader:
    """Changes what is served.

    A name changes in one step of the event loop: requests see the old content or the new one.
    Content leaves the engine when no name and no request in flight needs it any more, so a
    request ends with the adapter it began with.
    """

    def __init__(
        self,
        engine: EngineClient,
        catalog: Catalog,
        recipes: RecipeBook,
        metrics: Metrics,
        sources: AdapterSources,
        shelf: AdapterShelf | None = None,
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._recipes = recipes
        self._metrics = metrics
        self._sources = sources
        self.shelf = shelf or AdapterShelf()
        self._shelved = ShelvedAdapters(
            self.shelf, engine, catalog, recipes, self._load_shelved, self.unload
        )
        self._folders = HeldFolders()
        self._held: set[str] = set()  # digests that the engine keeps on the device
        # One change at a time: else the same digest could be loaded and forgotten at once.
        self._changing = asyncio.Lock()
        self._dropping: set[asyncio.Task[None]] = set()

    async def load(
        self,
        name: str,
        source: str | LocalAdapter,
        *,
        replace: bool = False,
        confined: bool = True,
        digest: str | None = None,
        pin: bool | None = None,
        owner: str = "",
        check: Callable[[], None] = lambda: None,
    ) -> tuple[AdapterRecord, bool]:
        """Load an adapter and serve it.

        Args:
            name: what clients will call it.
            source: see `AdapterSources`; a relative path is looked up below each adapter root. What
                was fetched already is released.
            replace: an adapter of this name may exist and is replaced.
            confined: the source must be allowed for run-time loads (false for the operator's own).
            digest: the only content that is accepted, None for any.
            pin: keep it on the device; None as the name was before.
            owner: the tenant whose own it is, "" for the operator's. A tenant's folders lie in a
                folder of its name below the adapter roots.
            check: raises where it may not be loaded; called when no other change is under way.

        Returns:
            The record, and whether it replaced another.

        Raises:
            BadRequest: the name is not allowed or taken, or the files are malformed.
            Unprocessable: it does not fit the base model, has another digest, or cannot be pinned
                beside those that are.
            Forbidden: the source is not allowed.
            NotFound: there is no adapter.
            FetchFailed: its remote source cannot be read.
        """
        self._check_name(name)
        name = owned_name(owner, name) if owner else name
        self._check_free(name, replace)
        digest = checked_digest(digest)
        with self._metrics.loading():
            if isinstance(source, str):
                located = self._sources.locate(source, confined=confined, below=owner)
                # What takes long is done here, in a thread: no other load waits for a download.
                work = partial(self._sources.fetch, located)
                source = work() if located.kind == "folder" else await in_thread(work)
            try:
                async with self._changing:
                    self._check_free(name, replace)
                    check()
                    try:
                        record = await self._read(name, source, digest, self._pinned(name, pin))
                    except (BadRequest, Forbidden, NotFound) as error:
                        error.param = error.param or "path"
                        raise
                    return record, await self._serve(record)
            finally:
                release(source.folder)

    async def pin(self, name: str, pinned: bool) -> AdapterRecord:
        """Keep a served adapter on the device whatever else is asked for, or no longer.

        Raises:
            NotFound: nothing of this name is served.
            Unprocessable: it does not fit beside those that are pinned.
        """
        await self.fetch([name])
        async with self._changing:
            served = self._catalog.get(name)
            if served is None:
                raise not_loaded(name)
            record = replace(served, pinned=pinned)
            if pinned and name in self._shelved:
                # An engine that restarts must get it back at once, not with the next request.
                await self._engine.load_adapter(
                    name, record.path, record.roots, digest=record.digest
                )
            await self._hold(self._with(record))
            if self._catalog.get(name) is not served:  # it was unloaded meanwhile
                raise not_loaded(name)
            self._catalog.put(record)
        return record

    async def fetch(self, names: Iterable[str]) -> None:
        """Load those of the names that the shelf offers and that the engine does not have.

        A folder that changed since is read again, and one that is gone is served no longer.

        Raises:
            TurretError: as `load`; the adapter on the shelf cannot be served.
        """
        await self._shelved.fetch(names)

    async def sweep(self) -> None:
        """Stop serving what came from the shelf and is gone from it."""
        await self._shelved.sweep()

    async def _load_shelved(self, name: str, local: LocalAdapter) -> AdapterRecord | None:
        """None where the name was given to something else before this had its turn."""
        with self._metrics.loading():
            async with self._changing:
                if not self._shelved.is_free(name):
                    return None
                pinned = self._pinned(name, None)
                record = await self._read(name, local, None, pinned, keep=pinned)
                await self._serve(record)
                return record

    async def _read(
        self, name: str, local: LocalAdapter, digest: str | None, pinned: bool, *, keep: bool = True
    ) -> AdapterRecord:
        """Give the engine a folder; nothing is served yet."""
        info = await self._engine.load_adapter(
            name, local.folder, local.roots, digest=digest, keep=keep
        )
        self._folders.add(info.digest, local.folder)
        return make_record(name, local.folder, local.source, info, local.roots, pinned)

    async def _make(
        self, name: str, derivation: Derivation, resolved: Derivation, pin: bool | None = None
    ) -> AdapterRecord:
        """Let the engine derive an adapter; nothing is served yet."""
        info = await self._engine.load_adapter(name, "", None, resolved)
        for made_of in resolved.sources:  # an engine that restarts makes it again
            self._folders.add(info.digest, made_of.path)
        source = str(derivation)
        return make_record(name, source, source, info, None, self._pinned(name, pin))

    async def _serve(self, record: AdapterRecord) -> bool:
        """Let a name mean what was loaded; says whether it meant something before."""
        try:
            await self._hold(self._with(record))
        except TurretError:
            await self._drop([record.digest])
            raise
        self._shelved.forget(record.name)
        if (old := self._catalog.put(record)) is not None:
            await self._drop([old.digest])
        return old is not None

    def _pinned(self, name: str, pin: bool | None) -> bool:
        """What is asked for, else what the name has been."""
        old = self._catalog.get(name)
        return (old is not None and old.pinned) if pin is None else pin

    async def derive(
        self,
        name: str,
        derivation: Derivation,
        *,
        replace: bool = False,
        pin: bool | None = None,
    ) -> tuple[AdapterRecord, bool]:
        """Make an adapter of served ones and serve it.

        It is made of what its sources are now: replacing one of them later does not change it.

        Args:
            name: what clients will call it.
            derivation: its sources are names.
            replace: an adapter of this name may exist and is replaced.
            pin: keep it on the device; None as the name was before.

        Returns:
            The record, and whether it replaced another.

        Raises:
            BadRequest, Conflict: the name is not allowed, or taken.
            NotFound: a source is not served.
            Unprocessable: the sources cannot be merged.
        """
        self._check_name(name)
        await self.fetch(source.path for source in derivation.sources)
        async with self._changing:
            if self._recipes.served(name):
                raise taken(name)
            if self._catalog.get(name) is not None and not replace:
                raise Conflict(f"the name {name!r} is taken", "an adapter has it")
            resolved = self._recipes.resolve_sources(derivation)
            with self._metrics.loading():
                record = await self._make(name, derivation, resolved, pin)
            return record, await self._serve(record)

    def fetch_own(self, source: str) -> LocalAdapter:
        """The folder of a source that the operator names; held, and may take minutes.

        Raises:
            TurretError: as `load`.
        """
        return self._sources.fetch(self._sources.locate(source, confined=False))

    def look_in(self, roots: Sequence[Path], remotes: Sequence[str], dirs: Sequence[Path]) -> None:
        """Where run-time loads may read and fetch from now on, and what the shelf offers."""
        self._sources.allow(roots, remotes)
        self.shelf.use(dirs)

    async def change(self, changes: Changes) -> None:
        """Load, derive and unload many at once: all of it, or nothing where anything is refused.

        Raises:
            TurretError: as `load` and `derive`; `param` names what is at fault.
        """
        async with self._changing:
            future, loaded = self._catalog.copy(), []
            for name in changes.unload:
                future.remove(name)
            try:
                for name, (local, digest, pinned) in changes.load.items():
                    with blame(f"adapters.{name}"), self._metrics.loading():
                        record = await self._read(name, local, digest, pinned)
                    loaded.append(record.digest)
                    future.put(record)
                book = self._recipes.over(future, changes.recipes.stacks, changes.recipes.fusions)
                for name, derivation in changes.derive.items():
                    with blame(f"recipes.{name}"), self._metrics.loading():
                        resolved = book.resolve_sources(derivation)
                        record = await self._make(name, derivation, resolved)
                    loaded.append(record.digest)
                    future.put(record)
                check_names(book)
                await self._hold(future)
            except TurretError:
                await self._drop(list(dict.fromkeys(loaded)))
                raise
            await self._drop(list(dict.fromkeys(self._commit(future, changes))))

    def _commit(self, future: Catalog, changes: Changes) -> list[str]:
        """From one step of the event loop to the next; returns the digests that were replaced."""
        left = []
        for name in changes.unload:
            if (old := self._catalog.remove(name)) is not None:
                left.append(old.digest)
                self._shelved.forget(name)
                self._metrics.forget(name)
        for name in (*changes.load, *changes.derive):
            record = future.get(name)
            assert record is not None
            self._shelved.forget(name)
            if (old := self._catalog.put(record)) is not None:
                left.append(old.digest)
        self._recipes.recipes = dict(changes.recipes.stacks)
        self._recipes.fusions = dict(changes.recipes.fusions)
        self._recipes.reranks = dict(changes.recipes.reranks)
        return left

    async def unload(self, name: str) -> None:
        """Stop serving a name; requests in flight finish with what they began with.

        Raises:
            NotFound: nothing of this name is loaded.
        """
        record = self._catalog.remove(name)
        if record is None:
            raise not_loaded(name)
        self._shelved.forget(name)
        self._metrics.forget(name)
        await self._drop_unreferenced([record.digest])

    @contextmanager
    def using(self, recipe: Recipe) -> Iterator[None]:
        """Keep a recipe's adapters in the engine until the request is over."""
        self._catalog.acquire(recipe.digests)
        try:
            yield
        finally:
            if free := self._catalog.release(recipe.digests):
                self._drop_soon(free)

    def _check_name(self, name: str) -> None:
        if (problem := name_problem(name)) is not None:
            raise BadRequest(
                f"{name[:128]!r} cannot name an adapter",
                problem,
                "Choose another name.",
                param="name",
            )
        if self._recipes.served(name):
            raise taken(name)

    def _check_free(self, name: str, replace: bool) -> None:
        if self._recipes.served(name):
            raise taken(name)
        if self._catalog.get(name) is not None and not replace:
            raise BadRequest(
                f"the adapter {name!r} is already loaded",
                "loading does not replace unless asked to",
                "Set load_inplace to true, or unload it first.",
                param="name",
            )

    def _drop_soon(self, digests: Sequence[str]) -> None:
        task = asyncio.get_running_loop().create_task(self._drop_unreferenced(digests))
        self._dropping.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._dropping.discard)

    async def _drop_unreferenced(self, digests: Sequence[str]) -> None:
        async with self._changing:
            await self._drop(digests)

    async def _drop(self, digests: Sequence[str]) -> None:
        await self._tell(self._hold(self._catalog), digests)
        for digest in digests:
            if not self._catalog.is_referenced(digest):
                await self._tell(self._engine.unload_adapter(digest), [digest])
                self._folders.drop(digest)

    async def _tell(self, change: Awaitable[None], digests: Sequence[str]) -> None:
        try:
            await change
        except TurretError as error:
            fields = {"digests": list(digests), "error": type(error).__name__}
            logger.warning("adapter_not_unloaded", extra={"fields": fields})

    def _with(self, record: AdapterRecord) -> Catalog:
        """The catalog as it will be."""
        future = self._catalog.copy()
        future.put(record)
        return future

    async def _hold(self, catalog: Catalog) -> None:
        """Let the engine hold what a catalog pins."""
        held = {record.digest for record in catalog.records() if record.pinned}
        if held == self._held:
            return
        try:
            await self._engine.hold_adapters(sorted(held))
        except TurretError as error:
            error.param = "pin"
            raise
        self._held = held
