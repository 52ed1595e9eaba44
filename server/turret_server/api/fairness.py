"""Whose turn a request takes, and in whose part of the queue it waits."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from turret_server.telemetry.record import record_of
from turret_server.tenancy.principal import Quotas, Scope

# Set by gateways that know the tenants (gateway-api-inference-extension).
_HEADER = "x-gateway-inference-fairness-id"
_MAX_ID_CHARS = 128
_NO_QUOTAS = Quotas()


@dataclass(frozen=True, slots=True)
class Party:
    """One of those that take turns: a tenant, or whom a gateway asks for.

    Attributes:
        name: of the tenant, behind a '/' what the gateway says; "" where nobody is told apart.
        weight: its share beside others.
        quotas: of the tenant.
        has_peers: others queue beside it, and need room.
    """

    name: str
    weight: float = 1.0
    quotas: Quotas = _NO_QUOTAS
    has_peers: bool = False


def party_of(request: Request) -> Party:
    """Who calls; through a gateway, for whom.

    On an open server every caller may be a gateway. With keys the header is believed of those with
    the scope `gateway` alone: others could take more turns by inventing ids.
    """
    principal = record_of(request.scope).principal
    named = request.headers.get(_HEADER, "")[:_MAX_ID_CHARS]
    if principal is None:
        return Party(named, has_peers=bool(named))
    tenant = principal.tenant
    # Not `has`: ADMIN does not include it.
    if named and Scope.GATEWAY in principal.scopes:
        return Party(f"{tenant.name}/{named}", tenant.weight, tenant.quotas, has_peers=True)
    # Keys of the command line are one team's.
    has_peers = request.app.state.service.settings.tenancy.database is not None
    return Party(tenant.name, tenant.weight, tenant.quotas, has_peers)
