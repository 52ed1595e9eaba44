"""The entrance: reads a request, finds out which adapters it needs, and relays it.

It knows nothing else of the API: keys, limits, routes and errors are the replicas'.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from turret_server.api.error_responses import error_response
from turret_server.api.json_body import too_large
from turret_server.errors import EngineUnavailable, PayloadTooLarge, TurretError
from turret_server.scaleout import metrics_page
from turret_server.scaleout.affinity import names_in
from turret_server.scaleout.changes import change_in
from turret_server.scaleout.relay import Relay, ReplicaLost, Whole
from turret_server.scaleout.wire import HOP_BY_HOP, Forwarded, Item

_ACCEPT_S = 30.0
_BROADCAST_S = 60.0


class Entrance:
    """What Ray's HTTP proxy calls.

    Args:
        replicas: handle of the replicas.
        base_names: names of the base model.
        max_body_bytes: of a request; a replica may allow less.
    """

    def __init__(
        self, replicas: DeploymentHandle, base_names: tuple[str, ...], max_body_bytes: int
    ) -> None:
        self._replicas = replicas
        self._base_names = frozenset(base_names)
        self._max_body_bytes = max_body_bytes
        self._relay = Relay(self._ask, _ACCEPT_S)

    async def __call__(self, request: Request) -> Response:
        """Read the request; the answer is sent as it comes."""
        if request.url.path == "/metrics":
            return await self._metrics()
        try:
            return _Answer(self, await self._forwarded(request))
        except PayloadTooLarge as error:
            return error_response(error)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it

    async def answer(self, request: Forwarded, send: Send) -> None:
        """Send the answer, and tell the other replicas what it changed."""
        try:
            whole = await self._relay.fetch(request, send)
            if whole is None:
                return
            change = change_in(request)
            if change is not None and 200 <= whole.status < 300:
                await self._spread(change.name)
        except TurretError as error:
            whole = Whole.of_error(error)
        await whole.send(send)

    async def _forwarded(self, request: Request) -> Forwarded:
        """Read a request.

        Raises:
            PayloadTooLarge: its body is longer than any replica reads.
        """
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self._max_body_bytes:
                raise too_large(self._max_body_bytes)
            chunks.append(chunk)
        body, scope = b"".join(chunks), request.scope
        forwarded = Forwarded(
            method=request.method,
            path=scope.get("raw_path") or request.url.path.encode(),
            query=scope["query_string"],
            headers=tuple((k, v) for k, v in scope["headers"] if k.lower() not in HOP_BY_HOP),
            body=body,
            client=request.client and (request.client.host, request.client.port),
        )
        change = change_in(forwarded)
        # Changes of one name meet at one replica, which sees them in their order.
        names = names_in(body, self._base_names) if change is None else (change.name,)
        return replace(forwarded, names=names)

    async def _ask(self, request: Forwarded) -> AsyncGenerator[Item]:
        response: Any = self._replicas.options(stream=True).ask.remote(request)
        try:
            async for item in response:
                yield item
        except RayTaskError:
            raise  # a fault of ours, on a replica that lives
        except RayError as error:
            raise ReplicaLost(type(error).__name__) from error
        finally:
            response.cancel()

    async def _spread(self, name: str) -> None:
        """Wait until every replica has done with a name what one of them did.

        Raises:
            EngineUnavailable: one could not.
        """
        for found in await self._of_all("sync"):
            problem = found.get(name) if isinstance(found, dict) else type(found).__name__
            if problem is not None:
                raise EngineUnavailable(
                    f"the change of {name[:128]!r} has not reached every replica",
                    problem,
                    "They try again every few seconds; their logs tell if one does not succeed.",
                )

    async def _of_all(self, method: str) -> list[Any]:
        """What a method of every replica returns; errors among it."""
        try:
            response = self._replicas.broadcast(method)
            return await response.results_async(timeout_s=_BROADCAST_S, return_exceptions=True)
        except (RayServeException, TimeoutError) as error:
            return [error]

    async def _metrics(self) -> Response:
        pages = [page for page in await self._of_all("metrics") if isinstance(page, tuple)]
        page = metrics_page.merged(dict(sorted(pages)))
        return Response(page, media_type=CONTENT_TYPE_LATEST)


class _Answer(Response):
    """The answer to one request, as Ray wants it: something that sends itself."""

    def __init__(self, entrance: Entrance, request: Forwarded) -> None:
        super().__init__()
        self._entrance, self._request = entrance, request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._entrance.answer(self._request, send)
