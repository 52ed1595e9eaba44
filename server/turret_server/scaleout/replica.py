"""A replica: the API and its engine in an actor of Ray Serve."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from prometheus_client import Counter
from ray import serve
from ray.serve.handle import DeploymentHandle
from rich.console import Console

from turret_server.api.service import Service
from turret_server.config import ServeConfig
from turret_server.plan import make_plan
from turret_server.scaleout import asgi
from turret_server.scaleout.changes import Change, change_in
from turret_server.scaleout.follower import Follower
from turret_server.scaleout.wire import Accepted, Forwarded, Item
from turret_server.server import open_app
from turret_server.telemetry.logging import configure_logging
from turret_server.telemetry.record import record_of

_MAX_DOWN_S = 600.0  # an engine that is down for longer will not come back on this machine


class Replica:
    """What `turret serve` runs, with calls of Ray in the place of a socket.

    Args:
        config: of the server; its host and port mean nothing here.
        folder: that relative paths start from.
        log: handle of the `ChangeLog`.

    Raises:
        StartupError: what was asked for cannot be served.
    """

    async def __init__(self, config: ServeConfig, folder: Path, log: DeploymentHandle) -> None:
        if folder.is_dir():
            os.chdir(folder)
        configure_logging(config.log_level)
        console = Console(stderr=True)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._stack = AsyncExitStack()
        plan = make_plan(config, console)
        self._app, _ = await self._stack.enter_async_context(open_app(plan, console))
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))
        self._service: Service = self._app.state.service
        self._follower = Follower(self._service, _Log(log))
        await self._follower.sync()
        self._keeping_up = asyncio.create_task(self._follower.keep_up())
        self._was_up = time.monotonic()
        self._requests = Counter(
            "turret_replica_requests",
            "Requests for adapters, by whether all were on the device when the request came.",
            ["resident"],
            registry=self._service.metrics.registry,
        )

    async def __del__(self) -> None:
        """End the engine; Ray calls and awaits it once nothing is in flight any more."""
        self._keeping_up.cancel()
        await self._stack.aclose()

    async def ask(self, request: Forwarded) -> AsyncGenerator[Item]:
        """Answer a request: who answers, the head, the body."""
        yield Accepted(self._id)
        if request.names:
            self._requests.labels(str(self._has_resident(request.names)).lower()).inc()
        change, scope = change_in(request), asgi.scope_of(request)

        async def publish(status: int) -> None:
            if change is not None and 200 <= status < 300:
                await self._follower.publish(change, record_of(scope).principal)

        async for item in asgi.run(self._app, scope, request.body, publish):
            yield item

    async def sync(self) -> dict[str, str]:
        """See `Follower.sync`."""
        return await self._follower.sync()

    async def metrics(self) -> tuple[str, bytes]:
        """The id of this replica and its metrics page, as it is without a key."""
        return self._id, self._service.metrics.text(with_tenants=False)

    async def check_health(self) -> None:
        """Tell Ray whether to replace this replica.

        An engine that died is started again by the replica itself, which is faster.

        Raises:
            RuntimeError: the engine has been down for too long.
        """
        if self._service.engine.ready is not None:
            self._was_up = time.monotonic()
        elif time.monotonic() - self._was_up > _MAX_DOWN_S:
            raise RuntimeError(f"the engine has been down for {_MAX_DOWN_S:g} s")

    def _has_resident(self, names: Iterable[str]) -> bool:
        catalog, resident = self._service.catalog, self._service.engine.stats.resident_adapters
        records = [catalog.get(name) for name in names]
        return all(record is not None and record.digest in resident for record in records)


class _Log:
    """The change log by its handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle: Any = handle

    async def put(self, change: Change) -> None:
        await self._handle.put.remote(change)

    async def since(self, epoch: str, version: int) -> tuple[str, int, list[Change]]:
        return await self._handle.since.remote(epoch, version)

    async def restore(self, changes: Iterable[Change]) -> None:
        await self._handle.restore.remote(list(changes))
