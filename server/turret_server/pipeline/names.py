"""Adapter names as one tenant sees them.

An adapter that a tenant loads is its own: in the catalog it is called "tenant/name", which nobody
can write as a name, so two tenants may use the same one and neither sees the other's. What the
operator loads has a plain name, and is there for the tenants that it was granted to.
"""

from __future__ import annotations

from dataclasses import replace

from turret_adapters.catalog import AdapterRecord, Catalog
from turret_server.tenancy.principal import Tenant

_BETWEEN = "/"


def owned_name(tenant: str, name: str) -> str:
    """What the catalog calls an adapter of a tenant's own."""
    return f"{tenant}{_BETWEEN}{name}"


def is_owned(name: str) -> bool:
    """Does an adapter of this name belong to a tenant?"""
    return _BETWEEN in name


class Names:
    """A catalog as a tenant reads it.

    Args:
        catalog: every name.
        tenant: who reads.
    """

    def __init__(self, catalog: Catalog, tenant: Tenant) -> None:
        self._catalog, self._tenant = catalog, tenant

    def get(self, name: str) -> AdapterRecord | None:
        """The record of a name, None where there is none for this tenant; its own goes first."""
        if (own := self._catalog.get(owned_name(self._tenant.name, name))) is not None:
            return replace(own, name=name)
        is_plain = not is_owned(name)  # or it would be another tenant's
        return self._catalog.get(name) if is_plain and self._tenant.may_use(name) else None

    def called(self, name: str) -> str:
        """What the catalog, and so the metrics, call an adapter that the tenant sees."""
        own = owned_name(self._tenant.name, name)
        return name if self._catalog.get(own) is None else own

    def records(self) -> list[AdapterRecord]:
        """What the tenant may use, under its names, its own first."""
        own = self.own()
        return [
            *own.values(),
            *(
                record
                for record in self._catalog.records()
                if not is_owned(record.name)
                and record.name not in own
                and self._tenant.may_use(record.name)
            ),
        ]

    def own(self) -> dict[str, AdapterRecord]:
        """What the tenant has loaded, by its names."""
        start = owned_name(self._tenant.name, "")
        own = (r for r in self._catalog.records() if r.name.startswith(start))
        shown = (replace(r, name=r.name.removeprefix(start)) for r in own)
        return {record.name: record for record in shown}

    def names(self) -> list[str]:
        """The names of the same."""
        return [record.name for record in self.records()]

    def uses(self, digest: str) -> int:
        """Requests in flight that use a digest."""
        return self._catalog.uses(digest)

    def last_used(self, digest: str) -> float | None:
        """When a request last began to use a digest, in Unix time."""
        return self._catalog.last_used(digest)
