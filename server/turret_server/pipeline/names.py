"""Adapter names as one tenant sees them.

An adapter that a tenant loads is its own: in the catalog it is called "tenant/name", which nobody
can write as a name, so two tenants may use the same one and neither sees the other's. What the
operator loads has a plain name, and is there for the tenants that it was granted to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from turret_adapters.catalog import AdapterRecord, Catalog
from turret_server.tenancy.principal import Principal, Scope, Tenant

_BETWEEN = "/"


class Names:
    """The names of a catalog for one caller.

    Args:
        catalog: every name.
        caller: who asks; None on an open server. Admins see what the operator sees.
    """

    def __init__(self, catalog: Catalog, caller: Principal | None) -> None:
        self._catalog = catalog
        restricted = caller is not None and not caller.has(Scope.ADMIN)
        self._tenant: Tenant | None = caller.tenant if caller is not None and restricted else None

    def get(self, name: str) -> AdapterRecord | None:
        """The record of a name, None where there is none for this caller."""
        if self._tenant is None:
            return self._catalog.get(name)
        if (own := self._catalog.get(self.own(name))) is not None:
            return replace(own, name=name)
        return self._catalog.get(name) if self._tenant.may_use(name) else None

    def own(self, name: str) -> str:
        """What the catalog calls an adapter that this caller loads as `name`."""
        return name if self._tenant is None else f"{self._tenant.name}{_BETWEEN}{name}"

    def names(self) -> list[str]:
        """What the caller may use, its own first."""
        return [record.name for record in self.records()]

    def records(self) -> list[AdapterRecord]:
        """The records of the same, under the caller's names."""
        every = self._catalog.records()
        if self._tenant is None:
            return every
        start = self.own("")
        own = [r for r in every if r.name.startswith(start)]
        shown = [replace(r, name=r.name.removeprefix(start)) for r in own]
        taken = {record.name for record in shown}
        granted = (r for r in every if _BETWEEN not in r.name and self._tenant.may_use(r.name))
        return shown + [record for record in granted if record.name not in taken]

    def may_use(self, names: Iterable[str]) -> bool:
        """Were all these plain names granted?"""
        return self._tenant is None or all(map(self._tenant.may_use, names))
