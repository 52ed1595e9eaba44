"""Everything a server knows of its tenants, with one life."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from turret_server.errors import StartupError, TurretError
from turret_server.tenancy.database import Database
from turret_server.tenancy.directory import Directory
from turret_server.tenancy.ledger import Ledger
from turret_server.tenancy.principal import (
    EVERYTHING,
    Principal,
    Scope,
    Tenant,
    key_digest,
)
from turret_server.tenancy.quotas import Meters

log = logging.getLogger(__name__)

_REFRESH_S = 1.0
_KEY = re.compile(r"[!-~]+")


class Tenancy:
    """Who may call, how much, and what they used.

    Without keys and without a database the server is open: nobody is asked who they are.

    Args:
        keys: of the command line; each is a tenant of its own that may use every adapter.
        database: tenants and their keys; None for none.
        folder: of the ledger's journals; needed with a database.

    Attributes:
        database: as given.
        meters: the quotas.
        ledger: None without a database.
        is_database_down: it could not be read the last time, a second ago.
    """

    def __init__(
        self,
        keys: Mapping[str, Principal] | None = None,
        database: Database | None = None,
        folder: Path | None = None,
    ) -> None:
        self.use_keys(keys or {})
        self.database = database
        self._directory = None if database is None else Directory(database)
        self.meters = Meters()
        self.ledger: Ledger | None = None
        self.is_database_down = False
        if database is not None and folder is not None:
            self.ledger = Ledger(database, folder)

    @property
    def is_open(self) -> bool:
        """Nobody needs a key."""
        return not self._keys and self._directory is None

    def use_keys(self, keys: Mapping[str, Principal]) -> None:
        """Take these in the place of the command line's; those of the database stay."""
        self._keys = dict(keys)
        self._names = {principal.tenant.name for principal in self._keys.values()}

    @property
    def tenants(self) -> Mapping[str, Tenant]:
        """Those of the database, by name."""
        return {} if self._directory is None else self._directory.tenants

    def knows(self, name: str) -> bool:
        """Is there a tenant of this name, in the database or on the command line?"""
        return name in self.tenants or name in self._names

    def find(self, key: str) -> Principal | None:
        """Who calls with this key; None if nobody has it, or has it no longer.

        Both look it up by its hash: how long that takes tells nothing of other keys.
        """
        found = self._keys.get(key_digest(key))
        if found is None and self._directory is not None:
            found = self._directory.find(key)
        return found

    async def refresh(self) -> None:
        """Read the tables again if they have changed.

        Raises:
            DatabaseDown: they cannot be read; what was read before stays.
        """
        if self._directory is None:
            return
        try:
            await asyncio.to_thread(self._directory.refresh)
        except Exception:  # whatever it was, raised again: readiness tells it
            self.is_database_down = True
            raise
        self.is_database_down = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the tables and carry usage over, while inside."""
        task = asyncio.create_task(self._follow())
        if self.ledger is not None:
            self.ledger.start()
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if self.ledger is not None:
                await self.ledger.close()
            if self.database is not None:
                self.database.close()

    async def _follow(self) -> None:
        while self._directory is not None:
            await asyncio.sleep(_REFRESH_S)
            was_down = self.is_database_down
            try:
                await self.refresh()
            except TurretError as error:
                if not was_down:
                    log.warning("tenants are served as they were read last: %s", error)
            except Exception:  # whatever it was: without this, no key would ever be revoked again
                if not was_down:
                    log.exception("tenants are served as they were read last")


def static_keys(
    keys: Iterable[str],
    admin_keys: Iterable[str] = (),
    gateway_keys: Iterable[str] = (),
    metrics_keys: Iterable[str] = (),
) -> dict[str, Principal]:
    """Keys of the command line, by their hash; of a key itself nothing is kept.

    A key that is named for several things may do all of them.

    Raises:
        StartupError: one is empty, or cannot be sent.
    """
    found: dict[str, Principal] = {}
    for option, named, scopes in (
        ("--api-key", keys, {Scope.INFER}),
        ("--metrics-key", metrics_keys, {Scope.METRICS}),
        ("--admin-key", admin_keys, {Scope.ADMIN}),
        ("--gateway-key", gateway_keys, {Scope.INFER, Scope.GATEWAY}),
    ):
        for key in named:
            if _KEY.fullmatch(key) is None:
                raise StartupError(
                    f"a key of {option} cannot be one",
                    "it is empty: whoever sends none would have it"
                    if not key
                    else "a key is sent in a header, as ASCII without blanks",
                    "Choose another, or leave it out.",
                )
            digest = key_digest(key)
            tenant = Tenant(name=f"key-{digest[:12]}", grants=frozenset({EVERYTHING}))
            before = found[digest].scopes if digest in found else frozenset[Scope]()
            found[digest] = Principal(tenant=tenant, key=digest[:12], scopes=before | scopes)
    return found
