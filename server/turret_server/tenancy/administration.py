"""Changes of tenants, keys and grants. Each is one transaction with its line in the audit log."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from turret_adapters.catalog import name_problem
from turret_server.errors import BadRequest, Conflict, NotFound
from turret_server.tenancy import schema
from turret_server.tenancy.database import Database, changed
from turret_server.tenancy.principal import (
    EVERYTHING,
    MAX_LIFETIME_S,
    Quotas,
    Scope,
    key_digest,
    key_prefix,
    new_key,
)
from turret_server.tenancy.reports import Reports

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_WEIGHT = 1000.0


class TenantNotFound(NotFound):
    """No tenant has the name."""

    code = "tenant_not_found"


class KeyNotFound(NotFound):
    """No valid key begins like this."""

    code = "key_not_found"


class Administration(Reports):
    """What admins do, and see.

    Args:
        database: where.
        actor: who, for the audit log: the admin key's prefix, or "cli".
    """

    def __init__(self, database: Database, actor: str) -> None:
        super().__init__(database)
        self._actor = actor

    @contextmanager
    def _change(self) -> Iterator[Connection]:
        """A transaction after all others that change something.

        It begins with the row that every change writes: of two at once, one waits for the other
        and sees what that has done, in every database.
        """
        with self._database.begin() as connection:
            changed(connection)
            yield connection

    def create_tenant(
        self, name: str, *, weight: float = 1.0, quotas: Quotas | None = None
    ) -> None:
        """Make a tenant.

        Raises:
            BadRequest: the name, the weight or a quota is not allowed.
            Conflict: it exists.
        """
        if _NAME.fullmatch(name) is None:
            raise BadRequest(
                f"{name[:64]!r} cannot name a tenant",
                "names are up to 64 lower-case letters, digits, '.', '_' and '-'",
                "Choose another name.",
                param="name",
            )
        values = {"weight": _checked_weight(weight), **_checked(quotas or Quotas())}
        with self._change() as connection:
            if _tenant_id(connection, name) is not None:
                raise Conflict(
                    f"the tenant {name!r} exists", "names are unique", "Choose another name."
                )
            row = {"name": name, "created_at": _now(), **values}
            connection.execute(insert(schema.tenants).values(row))
            self._record(connection, "create tenant", name, None, values)

    def change_tenant(
        self, name: str, *, weight: float | None = None, quotas: Mapping[str, int | None] = {}
    ) -> None:
        """Give a tenant another weight, or other quotas; what is not named stays.

        Raises:
            BadRequest: a value is not allowed.
            TenantNotFound: there is no such tenant.
        """
        unknown = sorted(quotas.keys() - asdict(Quotas()).keys())
        if unknown:
            raise BadRequest(
                f"{unknown[0]!r} is no quota",
                f"known are {', '.join(asdict(Quotas()))}",
                "Correct its name.",
                param=unknown[0],
            )
        values: dict[str, Any] = {k: _checked_limit(k, v) for k, v in quotas.items()}
        if weight is not None:
            values["weight"] = _checked_weight(weight)
        if not values:
            raise BadRequest(
                "nothing is to be changed",
                "neither weight nor quotas are given",
                f"Name one of weight, {', '.join(asdict(Quotas()))}.",
            )
        with self._change() as connection:
            tenant = self._tenant(connection, name)
            columns = [schema.tenants.c[key] for key in values]
            here = schema.tenants.c.id == tenant
            before = dict(connection.execute(select(*columns).where(here)).one()._mapping)
            connection.execute(update(schema.tenants).where(here).values(values))
            self._record(connection, "change tenant", name, before, values)

    def create_key(
        self,
        tenant: str,
        *,
        label: str = "",
        scopes: Collection[Scope] = (Scope.INFER,),
        lifetime_s: int | None = None,
    ) -> str:
        """Make a key.

        Returns:
            The key: this is the only time that anybody sees it.

        Raises:
            BadRequest: it may do nothing, lives for less than a second or for more than a century,
                or its label is too long.
            TenantNotFound: there is no such tenant.
        """
        if not scopes:
            raise BadRequest(
                "the key would be good for nothing",
                "it has no scope",
                f"Scopes are {', '.join(Scope)}.",
                param="scopes",
            )
        if lifetime_s is not None and not 1 <= lifetime_s <= MAX_LIFETIME_S:
            raise BadRequest(
                f"the key would live for {lifetime_s} s",
                f"a lifetime is between a second and {MAX_LIFETIME_S // 86_400:,} days",
                "Correct it, or leave it out: the key lives until it is revoked.",
                param="lifetime_s",
            )
        with self._change() as connection:
            expires_at = None if lifetime_s is None else _now() + lifetime_s
            return self._new_key(connection, tenant, label, sorted(scopes), expires_at)

    def rotate_key(self, prefix: str, *, overlap_s: int = 3600) -> str:
        """Make another key like this one, which ends after `overlap_s`.

        Returns:
            The new key: this is the only time that anybody sees it.

        Raises:
            BadRequest: `overlap_s` is negative, or more than a century.
            Conflict: it was rotated before. Its end is then that of its overlap, and a key like it
                would have the same.
            KeyNotFound: there is no such key, or it is no longer valid.
        """
        if not 0 <= overlap_s <= MAX_LIFETIME_S:
            raise BadRequest(
                f"the old key would work for another {overlap_s} s",
                f"an overlap is between 0 s and {MAX_LIFETIME_S // 86_400:,} days",
                "Correct it.",
                param="overlap_s",
            )
        with self._change() as connection:
            row = self._valid_key(connection, prefix)
            newer = select(schema.keys.c.prefix).where(schema.keys.c.replaces == row.id)
            if (successor := connection.scalar(newer)) is not None:
                raise Conflict(
                    f"the key {prefix!r} was rotated before",
                    f"{successor!r} has taken its place",
                    "Rotate that one, or make a new key.",
                )
            lifetime = None if row.expires_at is None else row.expires_at - row.created_at
            expires_at = None if lifetime is None else _now() + lifetime
            scopes = [Scope(scope) for scope in row.scopes.split()]
            key = self._new_key(connection, row.tenant, row.label, scopes, expires_at, row.id)
            ends = _now() + overlap_s
            if row.expires_at is not None:
                ends = min(ends, row.expires_at)
            here = schema.keys.c.id == row.id
            connection.execute(update(schema.keys).where(here).values(expires_at=ends))
            self._record(
                connection,
                "rotate key",
                prefix,
                {"expires_at": row.expires_at},
                {"expires_at": ends, "key": key_prefix(key)},
            )
            return key

    def revoke_key(self, prefix: str) -> None:
        """End a key now.

        Raises:
            KeyNotFound: there is no such key, or it is no longer valid.
        """
        with self._change() as connection:
            row = self._valid_key(connection, prefix)
            here = schema.keys.c.id == row.id
            connection.execute(update(schema.keys).where(here).values(revoked_at=_now()))
            self._record(connection, "revoke key", prefix, None, {"revoked_at": _now()})

    def grant(self, tenant: str, names: Sequence[str]) -> None:
        """Let a tenant use adapters or recipes; EVERYTHING is all of them.

        Raises:
            BadRequest: a name can be none.
            TenantNotFound: there is no such tenant.
        """
        for name in names:
            if name != EVERYTHING and (problem := name_problem(name)):
                raise BadRequest(
                    f"{name[:128]!r} names no adapter", problem, "Correct it.", param="names"
                )
        with self._change() as connection:
            tenant_id = self._tenant(connection, tenant)
            before = _granted(connection, tenant_id)
            new = [name for name in dict.fromkeys(names) if name not in before]
            if new:
                rows = [{"tenant_id": tenant_id, "name": name} for name in new]
                connection.execute(insert(schema.grants), rows)
                self._record(connection, "grant", tenant, None, {"names": new})

    def withdraw(self, tenant: str, names: Sequence[str]) -> None:
        """Take grants back; what was not granted is fine.

        Raises:
            TenantNotFound: there is no such tenant.
        """
        with self._change() as connection:
            tenant_id = self._tenant(connection, tenant)
            held = [
                name for name in dict.fromkeys(names) if name in _granted(connection, tenant_id)
            ]
            if held:
                of_tenant = schema.grants.c.tenant_id == tenant_id
                connection.execute(
                    delete(schema.grants).where(of_tenant, schema.grants.c.name.in_(held))
                )
                self._record(connection, "withdraw", tenant, {"names": held}, None)

    def _new_key(
        self,
        connection: Connection,
        tenant: str,
        label: str,
        scopes: Sequence[Scope],
        expires_at: int | None,
        replaces: int | None = None,
    ) -> str:
        if len(label) > schema.NAME_CHARS:
            raise BadRequest(
                f"the label has {len(label)} characters",
                f"at most {schema.NAME_CHARS} are kept",
                "Shorten it.",
                param="label",
            )
        key = new_key()
        row = {
            "tenant_id": self._tenant(connection, tenant),
            "label": label,
            "prefix": key_prefix(key),
            "sha256": key_digest(key),
            "scopes": " ".join(scopes),
            "created_at": _now(),
            "expires_at": expires_at,
            "replaces": replaces,
        }
        connection.execute(insert(schema.keys).values(row))
        after = {"label": label, "scopes": row["scopes"], "expires_at": expires_at}
        self._record(connection, "create key", f"{tenant}/{row['prefix']}", None, after)
        return key

    def _tenant(self, connection: Connection, name: str) -> int:
        found = _tenant_id(connection, name)
        if found is None:
            raise TenantNotFound(
                f"there is no tenant {name[:64]!r}",
                "it was never made",
                "Make it first; `turret tenants list` shows those that there are.",
                param="tenant",
            )
        return found

    def _valid_key(self, connection: Connection, prefix: str) -> Any:
        query = (
            select(schema.keys, schema.tenants.c.name.label("tenant"))
            .join(schema.tenants)
            .where(schema.keys.c.prefix == prefix, schema.keys.c.revoked_at.is_(None))
        )
        row = connection.execute(query).first()
        if row is None or (row.expires_at is not None and row.expires_at <= _now()):
            raise KeyNotFound(
                f"there is no valid key {prefix[:16]!r}",
                "it was never made, has expired or is revoked",
                "Name a key by its beginning, as `turret keys list` shows it.",
                param="key",
            )
        return row

    def _record(
        self, connection: Connection, action: str, object: str, before: Any, after: Any
    ) -> None:
        row = {"at": _now(), "actor": self._actor, "action": action, "object": object}
        connection.execute(insert(schema.audit).values({**row, "before": before, "after": after}))


def _tenant_id(connection: Connection, name: str) -> int | None:
    return connection.scalar(select(schema.tenants.c.id).where(schema.tenants.c.name == name))


def _granted(connection: Connection, tenant_id: int) -> set[str]:
    query = select(schema.grants.c.name).where(schema.grants.c.tenant_id == tenant_id)
    return set(connection.scalars(query))


def _checked(quotas: Quotas) -> dict[str, int | None]:
    return {name: _checked_limit(name, value) for name, value in asdict(quotas).items()}


def _checked_limit(name: str, value: int | None) -> int | None:
    least = 1 if name == "running_requests" else 0  # at none, what is admitted would wait for ever
    if value is not None and not least <= value < 1 << 53:
        raise BadRequest(
            f"{name!r} is {value}",
            f"a quota is a count from {least} on, or null for no limit",
            "Correct it.",
            param=name,
        )
    return value


def _checked_weight(weight: float) -> float:
    if not 0 < weight <= _MAX_WEIGHT:
        raise BadRequest(
            f"the weight is {weight:g}",
            f"a weight is above 0 and at most {_MAX_WEIGHT:g}",
            "1 is the ordinary share.",
            param="weight",
        )
    return float(weight)


def _now() -> int:
    return int(time.time())
