"""What the tables say: tenants, keys, usage, and who changed what."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import case, func, select

from turret_server.errors import BadRequest
from turret_server.tenancy import schema
from turret_server.tenancy.database import Database
from turret_server.tenancy.directory import read_tenants
from turret_server.tenancy.journal import INTERRUPTED
from turret_server.tenancy.principal import Scope, Tenant

_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "member_tokens", "pages")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key as lists show it.

    Attributes:
        tenant: whose it is.
        prefix: its public beginning.
        label: what people call it.
        scopes: what it may do.
        created_at: Unix seconds, as the two below.
        expires_at: None for never.
        revoked_at: None while it is valid.
    """

    tenant: str
    prefix: str
    label: str
    scopes: tuple[Scope, ...]
    created_at: int
    expires_at: int | None
    revoked_at: int | None


class Reports:
    """Reads the tables.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def tenants(self) -> list[Tenant]:
        """Every tenant, oldest first."""
        with self._database.begin() as connection:
            return list(read_tenants(connection).values())

    def keys(self, tenant: str | None = None) -> list[KeyRecord]:
        """Every key, or those of a tenant, oldest first."""
        query = (
            select(schema.keys, schema.tenants.c.name.label("tenant"))
            .join(schema.tenants)
            .order_by(schema.keys.c.id)
        )
        if tenant is not None:
            query = query.where(schema.tenants.c.name == tenant)
        with self._database.begin() as connection:
            return [
                KeyRecord(
                    tenant=row.tenant,
                    prefix=row.prefix,
                    label=row.label,
                    scopes=tuple(Scope(scope) for scope in row.scopes.split()),
                    created_at=row.created_at,
                    expires_at=row.expires_at,
                    revoked_at=row.revoked_at,
                )
                for row in connection.execute(query)
            ]

    def usage(
        self, *, tenant: str | None = None, since: str = "", until: str = "9999-12-31"
    ) -> list[dict[str, Any]]:
        """The ledger's sums per day, tenant, key and model.

        Args:
            tenant: of this one alone.
            since: first day, "2026-11-28".
            until: last day.

        Raises:
            BadRequest: a day is none.
        """
        since, until = since and _checked_day("since", since), _checked_day("until", until)
        table = schema.requests
        groups = [table.c.day, table.c.tenant, table.c.key, table.c.model]
        sums = [func.sum(table.c[name]).label(name) for name in _COUNTS]
        interrupted = func.sum(case((table.c.status == INTERRUPTED, 1), else_=0))
        query = (
            select(*groups, func.count().label("requests"), *sums, interrupted.label(INTERRUPTED))
            .where(table.c.day.between(since, until))
            .group_by(*groups)
            .order_by(*groups)
        )
        if tenant is not None:
            query = query.where(table.c.tenant == tenant)
        with self._database.begin() as connection:
            found = [dict(row._mapping) for row in connection.execute(query)]
        # PostgreSQL's sums are decimals.
        return [
            {key: value if isinstance(value, str) else int(value) for key, value in row.items()}
            for row in found
        ]

    def audit(self, limit: int = 100) -> list[dict[str, Any]]:
        """The last changes, newest first."""
        query = select(schema.audit).order_by(schema.audit.c.id.desc()).limit(limit)
        with self._database.begin() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]


def _checked_day(name: str, text: str) -> str:
    """The day, which the database compares as a text."""
    with suppress(ValueError):
        if date.fromisoformat(text).isoformat() == text:
            return text
    raise BadRequest(
        f"{name!r} is {text[:64]!r}",
        "it is no day of the calendar, written like 2026-11-28",
        "Correct it.",
        param=name,
    )
