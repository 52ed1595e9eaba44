"""Tenants and keys in memory: what requests are checked against, without the database.

A change reaches every server that reads the tables within a moment; when the database is down,
what was read last stays good.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, select

from turret_server.tenancy import schema
from turret_server.tenancy.database import Database
from turret_server.tenancy.principal import Principal, Quotas, Scope, Tenant, key_digest


class Directory:
    """The tables as of `revision`.

    Args:
        database: where they are.
        clock: Unix seconds; keys expire by it.

    Raises:
        DatabaseDown: they cannot be read.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock
        self._lock = threading.Lock()  # else the slower of two readers could put back what it saw
        self.revision = -1
        self._keys: Mapping[str, Principal] = {}
        self.tenants: Mapping[str, Tenant] = {}
        self.refresh()

    def find(self, key: str) -> Principal | None:
        """Whose key it is; None where it is unknown, expired or revoked.

        The key is looked up by its hash, so the time that it takes tells nothing of other keys.
        """
        found = self._keys.get(key_digest(key))
        if found is None or (found.expires_at is not None and found.expires_at <= self._clock()):
            return None
        return found

    def refresh(self) -> bool:
        """Read the tables again if they have changed, and say whether they had.

        Raises:
            DatabaseDown: they cannot be read; what was read before stays.
        """
        with self._lock:
            revision = self._database.revision()
            if revision == self.revision:
                return False
            with self._database.begin() as connection:
                valid = select(schema.keys).where(schema.keys.c.revoked_at.is_(None))
                rows = connection.execute(valid).all()
                # After the keys: tenants are never removed, so that every key's is among them,
                # also where both were made between the two reads.
                tenants = read_tenants(connection)
            keys = {
                row.sha256: Principal(
                    tenant=tenants[row.tenant_id],
                    key=row.prefix,
                    scopes=frozenset(Scope(scope) for scope in row.scopes.split()),
                    expires_at=row.expires_at,
                )
                for row in rows
            }
            # Each assignment is one step: a request sees the old tables or the new ones.
            self._keys, self.tenants = keys, {tenant.name: tenant for tenant in tenants.values()}
            self.revision = revision
            return True


def read_tenants(connection: Connection) -> dict[int, Tenant]:
    """Every tenant with its grants, by the number of its row."""
    grants: defaultdict[int, set[str]] = defaultdict(set)
    for row in connection.execute(select(schema.grants)):
        grants[row.tenant_id].add(row.name)
    query = select(schema.tenants).order_by(schema.tenants.c.id)
    return {row.id: _tenant(row, frozenset(grants[row.id])) for row in connection.execute(query)}


def _tenant(row: Any, grants: frozenset[str]) -> Tenant:
    quotas = Quotas(**{field.name: getattr(row, field.name) for field in fields(Quotas)})
    return Tenant(name=row.name, weight=row.weight, quotas=quotas, grants=grants)
