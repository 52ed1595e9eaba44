"""The server as a tenant sees it: its own adapters, what it was granted, and nothing else.

Routes work on a `Service` and know no tenants: for a caller that is no admin they get this one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from turret_adapters.catalog import AdapterRecord
from turret_adapters.derivation import Derivation
from turret_server.api.adapter_loader import AdapterLoader
from turret_server.errors import Forbidden, NotFound
from turret_server.pipeline.names import Names, owned_name
from turret_server.pipeline.recipe import Recipe
from turret_server.sources.adapter import LocalAdapter
from turret_server.tenancy.principal import Tenant
from turret_server.tenancy.quotas import QuotaExceeded


class TenantShelf:
    """The shelf, as far as it was granted."""

    def __init__(self, adapters: AdapterLoader, tenant: Tenant) -> None:
        self._shelf, self._tenant = adapters.shelf, tenant

    def find(self, name: str) -> tuple[Path, Path] | None:
        """See `AdapterShelf.find`."""
        return self._shelf.find(name) if self._tenant.may_use(name) else None

    def names(self) -> list[str]:
        """See `AdapterShelf.names`."""
        return [name for name in self._shelf.names() if self._tenant.may_use(name)]


class TenantAdapters:
    """Loading and unloading for one tenant: it changes its own adapters alone.

    Args:
        adapters: the server's.
        tenant: who loads.
        names: what it sees.
    """

    def __init__(self, adapters: AdapterLoader, tenant: Tenant, names: Names) -> None:
        self._adapters, self._tenant, self._names = adapters, tenant, names
        self.shelf = TenantShelf(adapters, tenant)

    async def load(
        self,
        name: str,
        source: str | LocalAdapter,
        *,
        replace: bool = False,
        digest: str | None = None,
        pin: bool | None = None,
    ) -> tuple[AdapterRecord, bool]:
        """Load an adapter from below the tenant's own folder of an adapter root.

        Raises:
            Forbidden: it is to be pinned, which is the operator's to decide.
            QuotaExceeded: the tenant has as many as it may have.
            TurretError: as `AdapterLoader.load`.
        """
        _refuse_pin(pin)
        self._check_quota(name)  # before anything is fetched
        record, replaced = await self._adapters.load(
            name,
            source,
            replace=replace,
            digest=digest,
            owner=self._tenant.name,
            check=lambda: self._check_quota(name),  # others may have been loaded meanwhile
        )
        return dataclasses.replace(record, name=name), replaced

    def _check_quota(self, name: str) -> None:
        most, own = self._tenant.quotas.resident_adapters, self._names.own()
        if most is not None and name not in own and len(own) >= most:
            raise QuotaExceeded(
                f"{self._tenant.name!r} has {len(own)} adapters of its own",
                f"its quota is {most}",
                "Unload one, or load over it.",
                retry_after_s=60.0,
            )

    async def unload(self, name: str) -> None:
        """Stop serving an adapter of the tenant's own.

        Raises:
            NotFound: it has none of this name.
        """
        try:
            await self._adapters.unload(owned_name(self._tenant.name, name))
        except NotFound:
            raise NotFound(
                f"the adapter {name[:128]!r} is not yours",
                "it was never loaded by your tenant, or is unloaded already",
                "GET /v1/adapters lists what you may use.",
                param="name",
            ) from None

    async def pin(self, name: str, pinned: bool) -> AdapterRecord:
        """Never: places on the device are the operator's to give.

        Raises:
            Forbidden: always.
        """
        _refuse_pin(pinned)
        raise NotFound(f"the adapter {name[:128]!r} is not pinned", "there is nothing to undo")

    async def derive(
        self,
        name: str,
        derivation: Derivation,
        *,
        replace: bool = False,
        pin: bool | None = None,
    ) -> tuple[AdapterRecord, bool]:
        """Never: it would read the operator's files.

        Raises:
            Forbidden: always.
        """
        raise Forbidden(
            f"the adapter {name[:128]!r} was not derived",
            "deriving reads the files of its sources, which are the operator's",
            "Name the adapters as a stack, such as 'a:0.7+b', or ask the operator.",
        )

    async def fetch(self, names: Iterable[str]) -> None:
        """See `AdapterLoader.fetch`; names that were not granted are nobody's."""
        await self._adapters.fetch([name for name in names if self._tenant.may_use(name)])

    async def sweep(self) -> None:
        """See `AdapterLoader.sweep`."""
        await self._adapters.sweep()

    def using(self, recipe: Recipe) -> AbstractContextManager[None]:
        """See `AdapterLoader.using`."""
        return self._adapters.using(recipe)


def _refuse_pin(pin: bool | None) -> None:
    if pin:
        raise Forbidden(
            "the adapter cannot be pinned by a tenant",
            "places on the device are the operator's to give",
            "Leave pin out.",
            param="pin",
        )
