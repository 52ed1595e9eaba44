"""What one request did, gathered while it is served, for its log line and the metrics."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from turret_server.errors import TurretError
from turret_server.tenancy.principal import Principal

Attributes = dict[str, str | bool | int | float | list[str]]


@dataclass(slots=True)
class RequestRecord:
    """Counts and times, never text.

    Attributes:
        id: the request id, from the client or drawn.
        principal: who called; None without keys.
        model: the name the response shows; "" before it is known.
        label: the recipe's metric label.
        started: `time.perf_counter()` at arrival.
        member_tokens: prompts and answers of a fusion's members beside the request's own model.
        first_token_s: arrival to first token; None before.
        span: attributes for its span, beside what is told here; None where nothing traces.
        trace_id: of its span, in hexadecimal; "" without one.
        error: what the client was told went wrong, also in the middle of a stream.
    """

    id: str
    principal: Principal | None = None
    model: str = ""
    label: str = ""
    stream: bool = False
    choices: int = 0
    adapters: int = 0
    pages: int = 0  # of documents
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    member_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    queued_s: float = 0.0
    prefill_s: float = 0.0
    first_token_s: float | None = None
    error: TurretError | None = None
    disconnected: bool = False
    span: Attributes | None = None
    trace_id: str = ""
    started: float = field(default_factory=time.perf_counter)

    @property
    def tenant(self) -> str:
        """The name of the tenant that called; "" without keys."""
        return "" if self.principal is None else self.principal.tenant.name


_KEY = "turret_record"


def attach(scope: MutableMapping[str, Any], record: RequestRecord) -> None:
    """Make a record the one of an ASGI scope."""
    scope.setdefault("state", {})[_KEY] = record


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record that `attach` put there."""
    return scope["state"][_KEY]
