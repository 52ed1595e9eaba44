"""A replica's side of the change log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from fastapi import Response

from turret_server.api.adapters import put_adapter
from turret_server.api.schema.admin import PutAdapterBody
from turret_server.api.service import Service
from turret_server.errors import TurretError
from turret_server.scaleout.changes import Change, ChangeLog
from turret_server.tenancy.principal import Principal, Scope

_EVERY_S = 5.0
_CALL_S = 30.0

log = logging.getLogger("turret.scaleout")


class RemoteLog(Protocol):
    """`ChangeLog`, somewhere else."""

    async def put(self, change: Change) -> None:
        """See `ChangeLog.put`."""
        ...

    async def since(self, epoch: str, version: int) -> tuple[str, int, list[Change]]:
        """See `ChangeLog.since`."""
        ...

    async def restore(self, changes: Iterable[Change]) -> None:
        """See `ChangeLog.restore`."""
        ...


class Follower:
    """Does on this replica what was done on others.

    Args:
        service: of this replica.
        remote: the log that all replicas share.
    """

    def __init__(self, service: Service, remote: RemoteLog) -> None:
        self._service = service
        self._remote = remote
        self._epoch, self._version = "", 0
        self._known = ChangeLog()  # what the log was told, should it be lost
        self._behind: dict[tuple[str, str], Change] = {}  # what failed, and is tried again
        self._syncing = asyncio.Lock()

    async def publish(self, change: Change, caller: Principal | None) -> None:
        """Tell the others what this replica has just done for a caller."""
        owner = "" if caller is None or caller.has(Scope.ADMIN) else caller.tenant.name
        change = replace(change, owner=owner)
        service = await self._seen_by_owner(change)
        record = service and service.catalog.get(change.name)
        if change.body is not None and record is not None:
            content = {"digest": record.digest} if "path" in change.body else {}
            change = replace(change, body={**change.body, **content}, digest=record.digest)
        async with asyncio.timeout(_CALL_S):
            await self._remote.put(change)

    async def sync(self) -> dict[str, str]:
        """Catch up; what could not be done, and why, by the adapter's name."""
        async with self._syncing:
            async with asyncio.timeout(_CALL_S):
                epoch, version, changes = await self._remote.since(self._epoch, self._version)
                if epoch != self._epoch and (known := self._known.since("", 0)[2]):
                    await self._remote.restore(known)
            for change in changes:
                self._known.put(change)
                self._behind[change.owner, change.name] = change
            problems = {}
            for key, change in list(self._behind.items()):
                try:
                    await self._apply(change)
                    del self._behind[key]
                except TurretError as error:
                    problems[change.name] = str(error)
                except Exception as error:  # whatever it was: those after it are done all the same
                    log.exception("a change of %r failed", change.name)
                    problems[change.name] = f"a fault of the server ({type(error).__name__})"
            self._epoch, self._version = epoch, version
            return problems

    async def keep_up(self) -> None:
        """Sync now and then, for what a call did not reach."""
        told: dict[str, str] = {}
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                problems = await self.sync()
            except Exception as error:  # of Ray, of the log: whatever it is, the next try may do
                problems = {"": f"the change log does not answer ({type(error).__name__})"}
            if problems and problems != told:
                log.warning("this replica is behind the others: %s", "; ".join(problems.values()))
            told = problems

    async def _apply(self, change: Change) -> None:
        service = await self._seen_by_owner(change)
        if service is None:
            return
        record = service.catalog.get(change.name)
        if change.body is None:
            if record is not None:
                await service.adapters.unload(change.name)
            return
        pin = change.body.get("pin")
        is_done = record is not None and record.digest == change.digest
        if record is None or not is_done or pin not in (None, record.pinned):
            body = PutAdapterBody.model_validate(change.body)
            await put_adapter(change.name, body, Response(), service)

    async def _seen_by_owner(self, change: Change) -> Service | None:
        """The service for whom the change is; None for a tenant that was removed."""
        if not change.owner:
            return self._service
        tenancy = self._service.settings.tenancy
        if change.owner not in tenancy.tenants:
            await tenancy.refresh()  # it may be a moment old
        if (tenant := tenancy.tenants.get(change.owner)) is None:
            return None
        scopes = frozenset({Scope.ADAPTERS})
        return self._service.seen_by(Principal(tenant=tenant, key="", scopes=scopes))
