"""Administration over HTTP: tenants, keys, grants, usage, audit. All but one need an admin key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query, Request

from turret_server.api.json_body import JsonRoute
from turret_server.api.schema.tenants import (
    AuditList,
    AuditRow,
    CreateKeyBody,
    CreateTenantBody,
    GrantsBody,
    KeyCard,
    KeyList,
    NewKey,
    QuotaFields,
    RotateKeyBody,
    TenantCard,
    TenantList,
    UsageList,
    UsageRow,
)
from turret_server.api.service import Service, service_of
from turret_server.api.threads import QUERIES, in_thread
from turret_server.errors import NotFound, TurretError
from turret_server.telemetry.record import record_of
from turret_server.tenancy.administration import Administration, TenantNotFound
from turret_server.tenancy.principal import Quotas, Scope, Tenant

router = APIRouter(route_class=JsonRoute, tags=["Tenants"])

T = TypeVar("T")
Day = Annotated[str, Query(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class NoTenants(NotFound):
    """The server has no database of tenants."""

    code = "no_tenants"


class _Admin:
    """The administration as one caller uses it: in a thread, and at once for this server."""

    def __init__(self, request: Request, service: Service) -> None:
        self._tenancy = service.settings.tenancy
        principal = record_of(request.scope).principal
        self._actor = "open server" if principal is None else principal.key

    async def __call__(
        self, work: Callable[[Administration], T], *, is_shown_once: bool = False
    ) -> T:
        database = self._tenancy.database
        if database is None:
            raise NoTenants(
                "this server has no tenants",
                "it was started without a database",
                "Restart it with --database.",
            )
        result = await in_thread(lambda: work(Administration(database, self._actor)), QUERIES)
        try:
            await self._tenancy.refresh()
        except TurretError:
            if not is_shown_once:  # it is done, and this server sees it once it can read again
                raise
        return result


async def _admin_of(request: Request, service: Annotated[Service, Depends(service_of)]) -> _Admin:
    return _Admin(request, service)


AdminDep = Annotated[_Admin, Depends(_admin_of)]


@router.get("/v1/admin/tenants", summary="List the tenants")
async def list_tenants(admin: AdminDep) -> TenantList:
    """List the tenants with quotas and grants."""
    return TenantList(data=[_card(t) for t in await admin(lambda a: a.tenants())])


@router.post("/v1/admin/tenants", summary="Make a tenant", status_code=201)
async def create_tenant(body: CreateTenantBody, admin: AdminDep) -> TenantCard:
    """Make a tenant. Without grants it may use the base model alone."""
    quotas = Quotas(**{name: getattr(body, name) for name in asdict(Quotas())})
    weight = 1.0 if body.weight is None else body.weight
    await admin(lambda a: a.create_tenant(body.name, weight=weight, quotas=quotas))
    return await _tenant(admin, body.name)


@router.patch("/v1/admin/tenants/{name}", summary="Change a tenant")
async def change_tenant(name: str, body: QuotaFields, admin: AdminDep) -> TenantCard:
    """Change weight or quotas; what is not named stays, null is no limit."""
    named = body.model_fields_set
    quotas = {name: getattr(body, name) for name in asdict(Quotas()) if name in named}
    await admin(lambda a: a.change_tenant(name, weight=body.weight, quotas=quotas))
    return await _tenant(admin, name)


@router.post("/v1/admin/tenants/{name}/grants", summary="Let a tenant use adapters")
async def grant(name: str, body: GrantsBody, admin: AdminDep) -> TenantCard:
    """Let a tenant use adapters and recipes."""
    await admin(lambda a: a.grant(name, body.names))
    return await _tenant(admin, name)


@router.delete("/v1/admin/tenants/{name}/grants/{adapter}", summary="Take a grant back")
async def withdraw(name: str, adapter: str, admin: AdminDep) -> TenantCard:
    """Take a grant back."""
    await admin(lambda a: a.withdraw(name, [adapter]))
    return await _tenant(admin, name)


@router.get("/v1/admin/keys", summary="List the keys")
async def list_keys(admin: AdminDep, tenant: str | None = None) -> KeyList:
    """List keys; the keys themselves are stored nowhere."""
    found = await admin(lambda a: a.keys(tenant))
    return KeyList(data=[KeyCard.model_validate(key) for key in found])


@router.post("/v1/admin/keys", summary="Make a key", status_code=201)
async def create_key(body: CreateKeyBody, admin: AdminDep) -> NewKey:
    """Make a key; this answer alone ever shows it."""
    scopes = {Scope(scope) for scope in body.scopes}
    key = await admin(
        lambda a: a.create_key(
            body.tenant, label=body.label, scopes=scopes, lifetime_s=body.lifetime_s
        ),
        is_shown_once=True,
    )
    return NewKey(key=key)


@router.post("/v1/admin/keys/{prefix}/rotate", summary="Replace a key", status_code=201)
async def rotate_key(prefix: str, body: RotateKeyBody, admin: AdminDep) -> NewKey:
    """Make a key like another, which ends soon."""
    key = await admin(lambda a: a.rotate_key(prefix, overlap_s=body.overlap_s), is_shown_once=True)
    return NewKey(key=key)


@router.delete("/v1/admin/keys/{prefix}", summary="End a key", status_code=204)
async def revoke_key(prefix: str, admin: AdminDep) -> None:
    """End a key now."""
    await admin(lambda a: a.revoke_key(prefix))


@router.get("/v1/admin/usage", summary="What every tenant used")
async def all_usage(
    admin: AdminDep, tenant: str | None = None, since: Day = "2000-01-01", until: Day = "9999-12-31"
) -> UsageList:
    """Usage per day, tenant, key and model."""
    rows = await admin(lambda a: a.usage(tenant=tenant, since=since, until=until))
    return UsageList(data=[UsageRow.model_validate(row) for row in rows])


@router.get("/v1/admin/audit", summary="What admins changed")
async def audit(admin: AdminDep, limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> AuditList:
    """The last changes, newest first."""
    rows = await admin(lambda a: a.audit(limit))
    return AuditList(data=[AuditRow.model_validate(row) for row in rows])


@router.get("/v1/usage", summary="What your own tenant used")
async def own_usage(
    request: Request, admin: AdminDep, since: Day = "2000-01-01", until: Day = "9999-12-31"
) -> UsageList:
    """Usage of the tenant that asks, per day, key and model."""
    tenant = record_of(request.scope).tenant
    rows = await admin(lambda a: a.usage(tenant=tenant, since=since, until=until))
    return UsageList(data=[UsageRow.model_validate(row) for row in rows])


async def _tenant(admin: _Admin, name: str) -> TenantCard:
    for tenant in await admin(lambda a: a.tenants()):
        if tenant.name == name:
            return _card(tenant)
    raise TenantNotFound(f"there is no tenant {name[:64]!r}", "it has just been removed")


def _card(tenant: Tenant) -> TenantCard:
    return TenantCard.model_validate(
        {
            "name": tenant.name,
            "weight": tenant.weight,
            "quotas": asdict(tenant.quotas),
            "grants": sorted(tenant.grants),
        }
    )
