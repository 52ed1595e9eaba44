"""Deriving adapters over HTTP: what a body asks for, as the recipes of turret.toml ask for it."""

from __future__ import annotations

from turret_adapters.catalog import AdapterRecord
from turret_server.api.schema.derive import DeriveBody
from turret_server.api.service import Service
from turret_server.errors import TurretError, Unprocessable
from turret_server.pipeline.recipe_config import parse_derivation


async def derive(
    service: Service, name: str, body: DeriveBody, *, pin: bool | None = None
) -> tuple[AdapterRecord, bool]:
    """Make an adapter of others, in the background of what is being served, and serve it.

    Args:
        service: of the app.
        name: what clients will call it; an adapter of this name is replaced.
        body: what to make of which adapters.
        pin: keep it on the device; None as the name was before.

    Returns:
        The record, and whether it replaced another.

    Raises:
        BadRequest, Conflict: the name is not allowed, or taken by the base or a recipe.
        NotFound: a source is not served.
        Unprocessable: the parameters, or the sources, do not suit the method.
    """
    try:
        wanted = parse_derivation(body.model_dump(exclude_none=True))
    except ValueError as error:
        raise Unprocessable(
            f"the adapter {name!r} cannot be derived",
            str(error),
            "Correct it; docs/adapters.md shows methods and parameters.",
            param="derive",
        ) from None
    try:
        return await service.adapters.derive(name, wanted, replace=True, pin=pin)
    except TurretError as error:
        if error.param not in ("name", "pin"):
            error.param = f"derive.{error.param}" if error.param else "derive"
        raise
