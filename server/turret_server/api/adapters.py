"""Loading and unloading adapters: vLLM's two routes, and a resource of our own."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from starlette.responses import PlainTextResponse

from turret_adapters.base_names import same_model
from turret_adapters.catalog import AdapterRecord
from turret_server.api.derive import derive
from turret_server.api.json_body import JsonRoute
from turret_server.api.schema.admin import LoadLoraBody, PutAdapterBody, UnloadLoraBody
from turret_server.api.schema.responses import AdapterCard, AdapterDeleted, AdapterList
from turret_server.api.service import Service, service_of
from turret_server.errors import NotFound, TurretError

router = APIRouter(route_class=JsonRoute, tags=["Adapters"])

_VLLM_FIELDS = {"name": "lora_name", "path": "lora_path"}

ServiceDep = Annotated[Service, Depends(service_of)]


@router.post(
    "/v1/load_lora_adapter",
    summary="Load an adapter (as vLLM does)",
    response_class=PlainTextResponse,
)
async def load_lora_adapter(body: LoadLoraBody, service: ServiceDep) -> Response:
    """Load an adapter of any kind and serve it under a name."""
    try:
        await service.adapters.load(
            body.lora_name,
            body.lora_path,
            replace=body.load_inplace,
            digest=body.digest,
            pin=body.pin,
        )
    except TurretError as error:
        error.param = _VLLM_FIELDS.get(error.param or "", error.param)
        raise
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post(
    "/v1/unload_lora_adapter",
    summary="Unload an adapter (as vLLM does)",
    response_class=PlainTextResponse,
)
async def unload_lora_adapter(body: UnloadLoraBody, service: ServiceDep) -> Response:
    """Stop serving an adapter; requests in flight finish with it."""
    try:
        await service.adapters.unload(body.lora_name)
    except NotFound as error:
        error.param = _VLLM_FIELDS["name"]
        raise
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


@router.get("/v1/adapters", summary="List the loaded adapters")
async def list_adapters(service: ServiceDep) -> AdapterList:
    """List the loaded adapters with what is known of them."""
    await service.adapters.sweep()
    loaded = [_card(service, record) for record in service.catalog.records()]
    return AdapterList(data=loaded + [_shelf_card(service, n) for n in service.unread_names()])


@router.get("/v1/adapters/{name}", summary="Describe an adapter")
async def get_adapter(name: str, service: ServiceDep) -> AdapterCard:
    """Describe one loaded adapter."""
    await service.adapters.sweep()
    record = service.catalog.get(name)
    if service.is_unread(name):
        return _shelf_card(service, name)
    if record is None:
        raise NotFound(
            f"the adapter {name[:128]!r} is not loaded",
            "it was never loaded, or is unloaded already",
            "GET /v1/adapters lists what is.",
            param="name",
        )
    return _card(service, record)


@router.put(
    "/v1/adapters/{name}",
    summary="Load, derive or replace an adapter",
    responses={201: {"model": AdapterCard, "description": "Loaded under a new name."}},
)
async def put_adapter(
    name: str, body: PutAdapterBody, response: Response, service: ServiceDep
) -> AdapterCard:
    """Serve an adapter, or one made of others, atomically replacing what had the name; or pin."""
    if body.derive is not None:
        record, replaced = await derive(service, name, body.derive, pin=body.pin)
    elif body.path is not None:
        record, replaced = await service.adapters.load(
            name, body.path, replace=True, digest=body.digest, pin=body.pin
        )
    else:
        record, replaced = await service.adapters.pin(name, bool(body.pin)), True
    response.status_code = 200 if replaced else 201
    return _card(service, record)


@router.delete("/v1/adapters/{name}", summary="Unload an adapter")
async def delete_adapter(name: str, service: ServiceDep) -> AdapterDeleted:
    """Stop serving an adapter; requests in flight finish with it."""
    await service.adapters.unload(name)
    return AdapterDeleted(id=name)


def _shelf_card(service: Service, name: str) -> AdapterCard:
    found = service.adapters.shelf.find(name)
    path = str(found[0]) if found else ""
    served = service.settings.base_names[0]
    return AdapterCard(id=name, path=path, source=path, served_base=served, tier="shelf")


def _card(service: Service, record: AdapterRecord) -> AdapterCard:
    stats, digest = service.engine.stats, record.digest
    resident = digest in stats.resident_adapters
    return AdapterCard(
        id=record.name,
        kind=record.kind,
        digest=record.digest,
        path=record.path,
        source=record.source,
        rank=record.rank,
        targets=list(record.targets),
        sites=dict(record.sites),
        num_parameters=record.num_parameters,
        num_bytes=record.num_bytes,
        base_model=record.base_model,
        served_base=service.settings.base_names[0],
        base_match=_base_match(service, record.base_model),
        models=[model or service.settings.base_names[0] for model in record.num_layers],
        loaded_at=record.loaded_at,
        primitives=list(record.primitives),
        resident=resident,
        tier="device" if resident else "host" if digest in stats.host_adapters else "disk",
        pinned=record.pinned,
        requests=service.catalog.uses(digest),
        last_used=service.catalog.last_used(digest),
        num_virtual_tokens=record.num_virtual_tokens,
        notes=list(record.notes),
    )


def _base_match(service: Service, named: str | None) -> bool | None:
    served = (*service.settings.base_names, service.settings.model_root)
    return None if not named else any(same_model(named, name) for name in served)
