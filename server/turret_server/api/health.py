"""Probes, version and metrics: open to everyone, cheap at any load."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

import turret_server
from turret_server.api.schema.responses import Health, Version
from turret_server.api.service import Service, service_of
from turret_server.errors import EngineUnavailable
from turret_server.telemetry.record import record_of
from turret_server.tenancy.principal import Scope

router = APIRouter(tags=["Operations"])

ServiceDep = Annotated[Service, Depends(service_of)]


@router.get("/health", summary="Is the engine up?")
@router.get("/ping", name="ping", summary="Is the engine up?")
async def health(service: ServiceDep) -> Health:
    """200 while the engine can answer, 503 while it starts or restarts."""
    assert service.ready
    return Health(status="ok")


@router.get("/ready", summary="Should new requests come here?")
async def ready(service: ServiceDep) -> Health:
    """As /health, and 503 too while the server is draining before it stops."""
    assert service.ready
    if service.admission.draining:
        raise EngineUnavailable(
            "the server takes no new requests",
            "it is shutting down",
            "Send requests to another replica.",
        )
    return Health(status="ready")


@router.get("/version", summary="Version of the server")
async def version() -> Version:
    """The version of Turret."""
    return Version(version=turret_server.__version__)


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request, service: ServiceDep) -> Response:
    """All metrics in the text format of Prometheus; tenants for keys with the scope `metrics`."""
    caller = record_of(request.scope).principal
    with_tenants = caller is not None and caller.has(Scope.METRICS)
    page = service.metrics.text(with_tenants=with_tenants)
    return Response(page, media_type=CONTENT_TYPE_LATEST)
