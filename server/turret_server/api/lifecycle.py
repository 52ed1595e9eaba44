"""POST /v1/admin/reload: the configuration read again without a restart."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request

from turret_server.api.schema.reload import ReloadAnswer
from turret_server.errors import BadRequest

router = APIRouter(tags=["Operations"])

Reload = Callable[[], Awaitable[ReloadAnswer]]


@router.post("/v1/admin/reload", summary="Read the configuration again")
async def reload(request: Request) -> ReloadAnswer:
    """Serve what turret.toml says now: adapters, recipes, keys, and where loads may read.

    All of it or, where anything is wrong, nothing; requests in flight end with what they began
    with. The same as SIGHUP. Needs an admin key.
    """
    again: Reload | None = request.app.state.reload
    if again is None:
        raise BadRequest(
            "there is no configuration to read again",
            "the server was started without --config, or as a replica under Ray",
            "Load and unload adapters with PUT and DELETE /v1/adapters/{name}.",
        )
    return await again()
