"""A configuration served in the place of another, without a restart: all of it, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from turret_server.api.adapter_loader import AdapterLoader
from turret_server.api.changes import Changes, blame
from turret_server.api.service import Service
from turret_server.api.threads import in_thread
from turret_server.errors import Conflict, NotFound
from turret_server.pipeline.recipe_config import NamedRecipes
from turret_server.sources.adapter import LocalAdapter
from turret_server.sources.cached import release
from turret_server.sources.settings import AdapterSetting
from turret_server.tenancy.principal import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a configuration says that needs no restart.

    Attributes:
        adapters: by name.
        recipes: stacks, fusions, and what is derived.
        roots, remotes: where run-time loads may read and fetch.
        dirs: folders whose sub-folders are adapters.
        keys: by their hash.
    """

    adapters: Mapping[str, AdapterSetting]
    recipes: NamedRecipes
    roots: tuple[Path, ...] = ()
    remotes: tuple[str, ...] = ()
    dirs: tuple[Path, ...] = ()
    keys: Mapping[str, Principal]


class Reloader:
    """Makes a running service what a configuration says.

    Args:
        service: the operator's, with everything.
        served: what it was started with.
    """

    def __init__(self, service: Service, served: Served) -> None:
        assert isinstance(service.adapters, AdapterLoader)
        self._service, self._adapters, self._served = service, service.adapters, served
        self._states = self._read_states(served)
        self._reloading = asyncio.Lock()

    async def apply(self, served: Served) -> list[str]:
        """Serve this from now on. What is in flight keeps what it began with.

        An adapter is read again where its setting or its files have changed, or where somebody
        unloaded it; what was loaded at run time under other names stays.

        Returns:
            What has changed: "adapters.sql", "recipes.formal".

        Raises:
            TurretError: something cannot be served, `param` says which; nothing has changed.
        """
        async with self._reloading:
            self._check_names(served)
            states = await asyncio.to_thread(self._read_states, served)
            load = [name for name in served.adapters if self._is_new(name, served, states)]
            derive = [
                name
                for name, derivation in served.recipes.derived.items()
                if self._served.recipes.derived.get(name) != derivation
                or self._service.catalog.get(name) is None
                or any(source.path in load for source in derivation.sources)
            ]
            with ExitStack() as held:
                local = {name: await self._fetch(name, served, held) for name in load}
                await self._adapters.change(
                    Changes(
                        load={
                            name: (local[name], setting.digest, setting.pin)
                            for name, setting in served.adapters.items()
                            if name in local
                        },
                        derive={name: served.recipes.derived[name] for name in derive},
                        unload=_names(self._served) - _names(served),
                        recipes=served.recipes,
                    )
                )
            self._adapters.look_in(served.roots, served.remotes, served.dirs)
            self._service.settings.tenancy.use_keys(served.keys)
            shares = self._service.settings.adapter_shares
            shares.clear()
            shares |= {name: setting.share for name, setting in served.adapters.items()}
            changed = _difference(self._served, served, {*load, *derive})
            self._served, self._states = served, states
            return changed

    def waiting(self) -> dict[str, list[str]]:
        """Recipes that are no models yet, by the adapters of theirs that are not to be had."""
        missing, shelf = self._service.recipes.missing, self._adapters.shelf
        stacks = self._served.recipes.stacks
        found = {name: [n for n in missing(name) if shelf.find(n) is None] for name in stacks}
        return {f"recipes.{name}": adapters for name, adapters in found.items() if adapters}

    def _check_names(self, served: Served) -> None:
        for name, rerank in served.recipes.reranks.items():
            if rerank.scorer is not None and rerank.scorer not in self._service.scorers:
                raise NotFound(
                    f"no scorer {rerank.scorer!r} is running",
                    "scorers are started with the server",
                    "Restart it to use another.",
                    param=f"recipes.{name}",
                )
        reserved = {*self._service.recipes.base_names, *self._service.recipes.auxiliaries}
        for name in _names(served):
            if name in reserved or name in served.recipes.stacks:
                table = "adapters" if name in served.adapters else "recipes"
                raise Conflict(
                    f"the name {name!r} is taken",
                    "it is the base model or a named recipe",
                    "Choose another name.",
                    param=f"{table}.{name}",
                )

    def _is_new(self, name: str, served: Served, states: Mapping[str, object]) -> bool:
        return (
            self._served.adapters.get(name) != served.adapters[name]
            or self._states.get(name) != states[name]
            or self._service.catalog.get(name) is None
        )

    async def _fetch(self, name: str, served: Served, held: ExitStack) -> LocalAdapter:
        with blame(f"adapters.{name}"):
            work = partial(self._adapters.fetch_own, served.adapters[name].source)
            local = await in_thread(work)
        held.callback(release, local.folder)
        return local

    def _read_states(self, served: Served) -> dict[str, object]:
        return {name: self._state(setting) for name, setting in served.adapters.items()}

    def _state(self, setting: AdapterSetting) -> object:
        """Changes when the files do; None for what lies elsewhere."""
        path = Path(setting.source).expanduser()
        if path.is_dir():
            return self._adapters.shelf.state(path)
        try:
            found = path.stat()
        except (OSError, ValueError):
            return None
        return found.st_size, found.st_mtime_ns


def _names(served: Served) -> set[str]:
    return {*served.adapters, *served.recipes.derived}


def _difference(old: Served, new: Served, loaded: set[str]) -> list[str]:
    """Adapters and recipes that are not what they were."""
    adapters = (loaded & new.adapters.keys()) | (old.adapters.keys() - new.adapters.keys())
    before, after = _recipes(old), _recipes(new)
    recipes = {n for n in before | after if before.get(n) != after.get(n)} | (
        loaded & new.recipes.derived.keys()
    )
    return [
        *(f"adapters.{n}" for n in sorted(adapters)),
        *(f"recipes.{n}" for n in sorted(recipes)),
    ]


def _recipes(served: Served) -> dict[str, object]:
    recipes = served.recipes
    stacks = {
        name: (stack, recipes.fusions.get(name), recipes.reranks.get(name))
        for name, stack in recipes.stacks.items()
    }
    return {**stacks, **recipes.derived}
