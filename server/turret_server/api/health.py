"""Probes, version and metrics: open to everyone, cheap at any load."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

import turret_server
from turret_server.api.admission import engine_ready
from turret_server.api.error_responses import error_response
from turret_server.api.schema.responses import Health, NotReady, Readiness, Version
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
    engine_ready(service.engine)
    return Health(status="ok")


@router.get(
    "/ready",
    summary="Should new requests come here?",
    response_model=Readiness,
    responses={503: {"model": NotReady, "description": "Not now; `reasons` says why."}},
)
async def ready(request: Request, service: ServiceDep) -> Readiness | Response:
    """200 where a request would be served: the engine is up, usage can be recorded, no end is near.

    Without its database the server goes on with what it read last, so that alone is no reason
    to stay away: all replicas would leave at once.
    """
    reasons: dict[str, str] = {}
    if service.engine.ready is None:
        reasons["engine"] = "the engine is starting or restarting"
    if service.admission.draining:
        reasons["draining"] = "the server is shutting down"
    tenancy = service.settings.tenancy
    if tenancy.ledger is not None and (problem := await tenancy.ledger.problem()) is not None:
        reasons["usage"] = problem
    is_ready = not reasons
    if tenancy.is_database_down:
        reasons["database"] = "it does not answer: tenants and keys are as they were read last"
    if is_ready:
        return Readiness(status="ready", reasons=reasons)
    error = EngineUnavailable(
        "the server takes no new requests",
        "; ".join(reasons.values()),
        "Send requests to another replica, or again later.",
    )
    record_of(request.scope).error = error
    return error_response(error, status="not ready", reasons=reasons)


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
