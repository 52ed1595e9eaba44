"""Loading and unloading while serving: the catalog and the engine kept in step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from turret_adapters.catalog import AdapterRecord, Catalog, name_problem
from turret_adapters.derivation import Derivation
from turret_adapters.shelf import AdapterShelf
from turret_server.engine.client import EngineClient
from turret_server.engine.messages import AdapterInfo
from turret_server.errors import BadRequest, Conflict, Forbidden, NotFound, TurretError
from turret_server.pipeline.recipe import Recipe, RecipeBook
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
        roots: Sequence[Path],
        shelf: AdapterShelf | None = None,
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._recipes = recipes
        self._metrics = metrics
        self._roots = [root.expanduser().resolve() for root in roots]
        self.shelf = shelf or AdapterShelf()
        # Adapters from the shelf: the load that is under way, and the engine that has them. One
        # that restarted gets back what was loaded by name; a thousand others would keep it away.
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._fetched: dict[str, int] = {}
        # One change at a time: else the same digest could be loaded and forgotten at once.
        self._changing = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    async def load(
        self, name: str, path: str, *, replace: bool = False, confined: bool = True
    ) -> tuple[AdapterRecord, bool]:
        """Load a folder and serve it.

        Args:
            name: what clients will call it.
            path: the folder; a relative one is looked up below each adapter root.
            replace: an adapter of this name may exist and is replaced.
            confined: the folder must lie below an adapter root (false for the operator's own).

        Returns:
            The record, and whether it replaced another.

        Raises:
            BadRequest: the name is not allowed or taken, or the files are malformed.
            Unprocessable: the adapter does not fit the base model.
            Forbidden: the path leaves the adapter roots.
            NotFound: no such folder.
        """
        self._check_name(name)
        folder = self._confine(path) if confined else Path(path).expanduser().resolve()
        # Links inside the folder are the engine's to check: it opens the files.
        roots = [str(root) for root in self._roots] if confined else None
        return await self._load(name, folder, roots, replace=replace)

    async def fetch(self, names: Iterable[str]) -> None:
        """Load those of the names that the shelf offers and that the engine does not have.

        Raises:
            TurretError: as `load`; the adapter on the shelf cannot be served.
        """
        for name in names:
            while self._is_missing(name) and (found := self.shelf.find(name)) is not None:
                if name not in self._fetches:
                    self._fetches[name] = self._spawn(self._fetch(name, *found))
                # Shielded: the client that goes away is not the only one that waits.
                await asyncio.shield(self._fetches[name])

    def _is_missing(self, name: str) -> bool:
        if self._catalog.get(name) is None:
            return not self._recipes.served(name)
        return self._fetched.get(name, self._engine.restarts) != self._engine.restarts

    async def _fetch(self, name: str, folder: Path, shelf: Path) -> None:
        try:
            restarts = self._engine.restarts
            await self._load(name, folder, [str(shelf)], replace=True, keep=False)
            self._fetched[name] = restarts
        finally:
            del self._fetches[name]

    async def _load(
        self,
        name: str,
        folder: Path,
        roots: list[str] | None,
        *,
        replace: bool,
        keep: bool = True,
    ) -> tuple[AdapterRecord, bool]:
        async with self._changing:
            if self._catalog.get(name) is not None and not replace:
                raise BadRequest(
                    f"the adapter {name!r} is already loaded",
                    "loading does not replace unless asked to",
                    "Set load_inplace to true, or unload it first.",
                    param="name",
                )
            try:
                info = await self._engine.load_adapter(name, str(folder), roots, keep=keep)
            except (BadRequest, Forbidden, NotFound) as error:
                error.param = error.param or "path"
                raise
            record = _record(name, str(folder), info, roots)
            old = self._catalog.put(record)
            self._fetched.pop(name, None)
        if old is not None:
            await self._drop_unreferenced([old.digest])
        return record, old is not None

    async def derive(
        self, name: str, derivation: Derivation, *, replace: bool = False
    ) -> tuple[AdapterRecord, bool]:
        """Make an adapter of served ones and serve it.

        It is made of what its sources are now: replacing one of them later does not change it.

        Args:
            name: what clients will call it.
            derivation: its sources are names.
            replace: an adapter of this name may exist and is replaced.

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
            if self._catalog.get(name) is not None and not replace:
                raise Conflict(f"the name {name!r} is taken", "an adapter has it")
            derive = self._recipes.resolve_sources(derivation)
            info = await self._engine.load_adapter(name, "", None, derive)
            record = _record(name, str(derivation), info, None)
            old = self._catalog.put(record)
            self._fetched.pop(name, None)
        if old is not None:
            await self._drop_unreferenced([old.digest])
        return record, old is not None

    async def unload(self, name: str) -> None:
        """Stop serving a name; requests in flight finish with what they began with.

        Raises:
            NotFound: nothing of this name is loaded.
        """
        record = self._catalog.remove(name)
        if record is None:
            raise NotFound(
                f"the adapter {name[:128]!r} is not loaded",
                "it was never loaded, or is unloaded already",
                "GET /v1/adapters lists what is.",
                param="name",
            )
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
                self._spawn(self._drop_unreferenced(free))

    def _check_name(self, name: str) -> None:
        if (problem := name_problem(name)) is not None:
            raise BadRequest(
                f"{name[:128]!r} cannot name an adapter",
                problem,
                "Choose another name.",
                param="name",
            )
        if self._recipes.served(name):
            raise Conflict(
                f"the name {name!r} is taken",
                "it is the base model or a named recipe",
                "Choose another name.",
                param="name",
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._background.discard)
        return task

    async def _drop_unreferenced(self, digests: Sequence[str]) -> None:
        async with self._changing:
            for digest in digests:
                if self._catalog.is_referenced(digest):
                    continue
                try:
                    await self._engine.unload_adapter(digest)
                except TurretError as error:
                    # An engine that restarts has forgotten it anyway.
                    fields = {"digest": digest, "error": type(error).__name__}
                    logger.warning("adapter_not_unloaded", extra={"fields": fields})

    def _confine(self, path: str) -> Path:
        """The folder behind a path, which must lie below a root after every link is followed."""
        if not path or "\x00" in path or len(path) > 4096:
            raise _not_a_path(path, "it is empty or malformed")
        given = Path(path).expanduser() if path.startswith("~/") else Path(path)
        tried = [given] if given.is_absolute() else [root / given for root in self._roots]
        outside = True
        for candidate in tried:
            try:
                folder = candidate.resolve()
                exists = folder.exists()
            except (OSError, RuntimeError) as error:  # a loop of links, a name too long
                raise _not_a_path(path, str(error)) from error
            if any(folder.is_relative_to(root) for root in self._roots):
                outside = False
                if exists:
                    return folder
        if outside:
            # Says nothing about what exists out there.
            raise Forbidden(
                f"the path {path[:256]!r} is not allowed",
                "adapters are loaded from the adapter roots only",
                "Move the folder there, or restart with --adapter-root.",
                param="path",
            )
        raise NotFound(
            f"there is no adapter at {path[:256]!r}",
            "no such folder exists below the adapter roots",
            "Check the path.",
            param="path",
        )


def _record(name: str, path: str, info: AdapterInfo, roots: list[str] | None) -> AdapterRecord:
    return AdapterRecord(
        name=name,
        digest=info.digest,
        path=path,
        roots=None if roots is None else tuple(roots),
        kind=info.kind,
        rank=info.rank,
        targets=tuple(info.targets),
        num_layers=info.num_layers,
        num_parameters=info.num_parameters,
        num_bytes=info.num_bytes,
        base_model=info.base_model,
        loaded_at=time.time(),
        notes=tuple(info.notes),
        primitives=tuple(info.primitives),
        num_virtual_tokens=info.num_virtual_tokens,
    )


def _not_a_path(path: str, why: str) -> BadRequest:
    return BadRequest(f"{path[:256]!r} is not a path", why, "Correct it.", param="path")
