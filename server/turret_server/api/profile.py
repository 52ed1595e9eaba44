"""POST /v1/admin/profile: what the next steps of the engine spend their time on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Depends, Response
from starlette.responses import StreamingResponse

from turret_server.api.json_body import JsonRoute
from turret_server.api.schema.profile import OperationCard, ProfileBody, ProfileCard
from turret_server.api.service import Service, service_of
from turret_server.errors import Unprocessable

router = APIRouter(route_class=JsonRoute, tags=["Operations"])

_CHUNK_BYTES = 256 << 10


@router.post(
    "/v1/admin/profile",
    summary="Profile the next steps",
    response_model=ProfileCard,
    response_description="The operations that took most; with `trace`, a Chrome trace of them all.",
)
async def profile_steps(
    body: ProfileBody, service: Annotated[Service, Depends(service_of)]
) -> Response | ProfileCard:
    """Watch the next steps while requests run on, a little slower; one profile at a time."""
    found = await service.engine.profile(body.steps, body.wait_s, trace=body.trace)
    if not body.trace:
        return ProfileCard(
            steps=found.steps,
            seconds=found.seconds,
            operations=[
                OperationCard(name=o.name, calls=o.calls, own_s=o.own_s, total_s=o.total_s)
                for o in found.operations
            ],
        )
    if not found.trace:
        raise Unprocessable(
            "there is no trace",
            "the engine made no step in that time"
            if not found.steps
            else "it is too large, or the disk is full",
            "Profile while requests run." if not found.steps else "Ask for fewer steps.",
            param="steps",
        )
    path = Path(found.trace)
    file = path.open("rb")
    path.unlink()  # whatever becomes of the client, nothing is left
    return StreamingResponse(_chunks(file), media_type="application/json")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
