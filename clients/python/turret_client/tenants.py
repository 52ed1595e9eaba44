"""The tenants of a running server, and their keys. All of it needs an admin key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from turret_client.parsing import parse, parse_list
from turret_client.usage import (
    AuditRow,
    Key,
    Tenant,
    UsageRow,
    key_path,
    keys_path,
    tenant_path,
    usage_path,
)

if TYPE_CHECKING:
    from turret_client.client import Client


class ClientTenants:
    """Tenants: their weights, quotas and grants, and what they used."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> tuple[Tenant, ...]:
        """All of them."""
        return parse_list(Tenant, self._client.request("GET", tenant_path()))

    def create(self, name: str, *, weight: float | None = None, **quotas: int | None) -> Tenant:
        """Make a tenant, which may use the base model until it is granted more.

        Args:
            name: of the tenant.
            weight: its share beside the others; 1 by default.
            quotas: requests_per_minute, tokens_per_minute, concurrent_requests, … None is no limit.

        Raises:
            Conflict: there is one of this name.
        """
        body = {"name": name, "weight": weight, **quotas}
        return parse(Tenant, self._client.request("POST", tenant_path(), body))

    def change(self, name: str, *, weight: float | None = None, **quotas: int | None) -> Tenant:
        """Change the weight or quotas of a tenant; what is not named stays, None is no limit.

        Raises:
            NotFound: there is none of this name.
        """
        body: dict[str, Any] = {**quotas}
        if weight is not None:
            body["weight"] = weight
        return parse(Tenant, self._client.request("PATCH", tenant_path(name), body))

    def grant(self, name: str, names: Sequence[str]) -> Tenant:
        """Let a tenant use adapters and recipes; "*" is all of them.

        Raises:
            NotFound: there is no such tenant.
        """
        path = tenant_path(name, "grants")
        return parse(Tenant, self._client.request("POST", path, {"names": [*names]}))

    def withdraw(self, name: str, adapter: str) -> Tenant:
        """Take a grant back.

        Raises:
            NotFound: there is no such tenant, or it has no such grant.
        """
        path = tenant_path(name, "grants", adapter)
        return parse(Tenant, self._client.request("DELETE", path))

    def usage(
        self, tenant: str | None = None, since: str | None = None, until: str | None = None
    ) -> tuple[UsageRow, ...]:
        """What tenants used, per day, key and model.

        Args:
            tenant: one of them; all by default.
            since: first day, as 2026-11-28.
            until: last day.
        """
        path = usage_path(tenant, since, until, admin=True)
        return parse_list(UsageRow, self._client.request("GET", path))

    def audit(self, limit: int = 100) -> tuple[AuditRow, ...]:
        """The last changes that admins made, newest first."""
        path = f"/v1/admin/audit?limit={limit}"
        return parse_list(AuditRow, self._client.request("GET", path))


class ClientKeys:
    """Keys of tenants. A key is shown once, when it is made."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, tenant: str | None = None) -> tuple[Key, ...]:
        """All of them, or one tenant's, oldest first."""
        return parse_list(Key, self._client.request("GET", keys_path(tenant)))

    def create(
        self,
        tenant: str,
        *,
        label: str = "",
        scopes: Sequence[str] = ("infer",),
        lifetime_s: int | None = None,
    ) -> str:
        """Make a key, and return it: it is stored nowhere.

        Args:
            tenant: whose it is.
            label: what it is for.
            scopes: "infer", "adapters" (loads the tenant's own), "gateway" (says for whom it
                asks), "metrics" (sees all tenants in them), "admin".
            lifetime_s: until it ends by itself; None is for ever.

        Raises:
            NotFound: there is no such tenant.
        """
        body = {"tenant": tenant, "label": label, "scopes": [*scopes], "lifetime_s": lifetime_s}
        return self._client.request("POST", key_path(), body)["key"]

    def rotate(self, prefix: str, *, overlap_s: int = 3600) -> str:
        """Make a key like another, which ends soon, and return it.

        Args:
            prefix: of the other, as `list` tells it.
            overlap_s: how long the other still works.

        Raises:
            NotFound: there is no such key.
        """
        path = key_path(prefix, "rotate")
        return self._client.request("POST", path, {"overlap_s": overlap_s})["key"]

    def revoke(self, prefix: str) -> None:
        """End a key now.

        Raises:
            NotFound: there is no such key.
        """
        self._client.request("DELETE", key_path(prefix))
