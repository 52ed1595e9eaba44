"""Who calls: a tenant, by one of its keys."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from enum import StrEnum

_PREFIX_CHARS = 11  # "tk-" and eight that tell keys apart; 240 random bits stay secret
EVERYTHING = "*"
MAX_LIFETIME_S = 100 * 365 * 86_400  # of a key; calendars end


class Scope(StrEnum):
    """What a key may do."""

    INFER = "infer"  # ask for answers, list models
    ADAPTERS = "adapters"  # load and unload its tenant's adapters
    METRICS = "metrics"  # read metrics that tell tenants apart
    ADMIN = "admin"  # everything, for every tenant
    GATEWAY = "gateway"  # say whose turn a request takes; of its own, not a part of ADMIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """Limits of a tenant; None is no limit.

    Attributes:
        requests_per_minute: of all routes that generate or read documents.
        tokens_per_minute: prompt and answer.
        concurrent_requests: in flight at once.
        resident_adapters: adapters of its own that are loaded.
        pages_per_minute: of documents.
        queued_requests: answers that wait for their first token.
        queued_tokens: of their prompts.
        running_requests: answers in the batch at once, of a fusion its members; more wait, and one
            request may have more if it is alone.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    resident_adapters: int | None = None
    pages_per_minute: int | None = None
    queued_requests: int | None = None
    queued_tokens: int | None = None
    running_requests: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A customer.

    Attributes:
        name: unique.
        weight: its share beside other tenants, 1 by default.
        quotas: what it may use.
        grants: names of adapters and recipes it may use; EVERYTHING among them is all.
    """

    name: str
    weight: float = 1.0
    quotas: Quotas = field(default_factory=Quotas)
    grants: frozenset[str] = frozenset()

    def may_use(self, name: str) -> bool:
        """Is an adapter or recipe of this name there for the tenant?"""
        return name in self.grants or EVERYTHING in self.grants


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A tenant by one of its keys.

    Attributes:
        tenant: whose key it is.
        key: the key's public beginning, "tk-1a2b3c4d".
        scopes: what the key may do; ADMIN includes the others, but GATEWAY counts where it is
            named alone.
        expires_at: Unix seconds, None for never.
    """

    tenant: Tenant
    key: str
    scopes: frozenset[Scope]
    expires_at: int | None = None

    def has(self, scope: Scope) -> bool:
        """May the key do this?"""
        return scope in self.scopes or Scope.ADMIN in self.scopes


def new_key() -> str:
    """A key that nobody has had: 288 random bits."""
    return f"tk-{secrets.token_urlsafe(36)}"


def key_digest(key: str) -> str:
    """What is stored of a key. Its entropy makes salt and slow hashing needless."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_prefix(key: str) -> str:
    """What is shown of a key, to tell it from others."""
    return key[:_PREFIX_CHARS]
