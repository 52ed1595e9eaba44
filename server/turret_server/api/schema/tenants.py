"""Bodies and answers of the administration of tenants."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from turret_server.api.schema.base import RequestBody
from turret_server.tenancy.principal import MAX_LIFETIME_S, Scope

_LIMIT = Field(None, ge=0, lt=1 << 53, description="null is no limit.")


class QuotaFields(RequestBody):
    """Weight and quotas."""

    weight: float | None = Field(None, gt=0, le=1000, description="Share beside other tenants.")
    requests_per_minute: int | None = _LIMIT
    tokens_per_minute: int | None = _LIMIT
    concurrent_requests: int | None = _LIMIT
    resident_adapters: int | None = _LIMIT
    pages_per_minute: int | None = _LIMIT
    queued_requests: int | None = _LIMIT
    queued_tokens: int | None = _LIMIT
    running_requests: int | None = Field(None, ge=1, lt=1 << 53, description="null is no limit.")


class CreateTenantBody(QuotaFields):
    """A tenant to make."""

    name: str = Field(max_length=64)


class GrantsBody(RequestBody):
    """Adapters and recipes by name; "*" is all of them."""

    names: list[str] = Field(min_length=1, max_length=1000)


class CreateKeyBody(RequestBody):
    """A key to make."""

    tenant: str = Field(max_length=64)
    label: str = Field("", max_length=64)
    scopes: list[Literal["infer", "adapters", "metrics", "admin", "gateway"]] = Field(
        ["infer"],
        min_length=1,
        max_length=5,
        description="What it may do; admin is everything but gateway.",
    )
    lifetime_s: int | None = Field(
        None, ge=1, le=MAX_LIFETIME_S, description="null is until it is revoked."
    )


class RotateKeyBody(RequestBody):
    """How a key is replaced."""

    overlap_s: int = Field(
        3600, ge=0, le=MAX_LIFETIME_S, description="How long the old one still works."
    )


class _Answer(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class QuotaCard(_Answer):
    """Quotas; null is no limit."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    resident_adapters: int | None
    pages_per_minute: int | None
    queued_requests: int | None
    queued_tokens: int | None
    running_requests: int | None


class TenantCard(_Answer):
    """A tenant."""

    name: str
    weight: float
    quotas: QuotaCard
    grants: list[str]


class TenantList(_Answer):
    """Every tenant."""

    object: str = "list"
    data: list[TenantCard]


class KeyCard(_Answer):
    """A key, of which only the beginning is known. Times are Unix seconds."""

    prefix: str
    tenant: str
    label: str
    scopes: list[Scope]
    created_at: int
    expires_at: int | None
    revoked_at: int | None


class KeyList(_Answer):
    """Keys, oldest first."""

    object: str = "list"
    data: list[KeyCard]


class NewKey(_Answer):
    """A new key: this answer alone ever shows it."""

    key: str


class UsageRow(_Answer):
    """What a key used of a model in a day (UTC)."""

    day: str
    tenant: str
    key: str
    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    member_tokens: int = Field(
        description="Prompts and answers of a fusion's members beside the request's own model."
    )
    pages: int
    interrupted: int = Field(description="Requests that ended with the process serving them.")


class UsageList(_Answer):
    """Rows of the ledger; what has ended is there within some seconds."""

    object: str = "list"
    data: list[UsageRow]


class AuditRow(_Answer):
    """A change that an admin made."""

    id: int
    at: int
    actor: str
    action: str
    object: str
    before: Any
    after: Any


class AuditList(_Answer):
    """Changes, newest first."""

    object: str = "list"
    data: list[AuditRow]
