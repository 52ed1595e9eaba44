"""Tenants, keys and usage as the server tells of them, and where it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant.

    Attributes:
        name: of the tenant.
        weight: its share beside the others.
        quotas: limits by name, such as requests_per_minute; None is no limit.
        grants: adapters and recipes that it may use beside its own; "*" is all of them.
    """

    name: str
    weight: float = 1.0
    quotas: Mapping[str, int | None] = field(default_factory=dict, hash=False)
    grants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """A key, of which only the beginning is known. Times are Unix seconds."""

    prefix: str
    tenant: str
    label: str = ""
    scopes: tuple[str, ...] = ()
    created_at: int = 0
    expires_at: int | None = None
    revoked_at: int | None = None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What a key used of a model in a day (UTC).

    Attributes:
        member_tokens: prompts and answers of a fusion's members beside the request's own model.
        interrupted: requests that ended with the process that served them.
    """

    day: str
    tenant: str
    key: str
    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    member_tokens: int = 0
    pages: int = 0
    interrupted: int = 0


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A change that an admin made, at a Unix time."""

    id: int
    at: int
    actor: str
    action: str
    object: str
    before: Any = None
    after: Any = None


def tenant_path(*parts: str) -> str:
    """The path of the tenants, of one, or of something of one."""
    return _path("/v1/admin/tenants", parts)


def key_path(*parts: str) -> str:
    """The path of the keys, of one, or of what is done to one."""
    return _path("/v1/admin/keys", parts)


def keys_path(tenant: str | None) -> str:
    """The path of the list of keys, of one tenant or of all."""
    return key_path() if tenant is None else f"{key_path()}?tenant={quote(tenant, safe='')}"


def usage_path(
    tenant: str | None, since: str | None, until: str | None, *, admin: bool = False
) -> str:
    """The path of the usage of the key's own tenant, or (admin) of any."""
    given = {"tenant": tenant, "since": since, "until": until}
    query = urlencode({name: value for name, value in given.items() if value is not None})
    path = "/v1/admin/usage" if admin else "/v1/usage"
    return f"{path}?{query}" if query else path


def _path(root: str, parts: Sequence[str]) -> str:
    return "/".join([root, *(quote(part, safe="") for part in parts)])
