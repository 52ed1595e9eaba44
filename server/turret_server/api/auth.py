"""API keys: everything needs one, except what probes and scrapers read.

Keys are compared by their SHA-256, in constant time; the keys themselves are never kept.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from turret_server.api.error_responses import error_response
from turret_server.api.settings import ApiKey
from turret_server.errors import Forbidden, TurretError, Unauthorized
from turret_server.telemetry.record import record_of

OPEN = frozenset({"/health", "/ping", "/ready", "/version", "/metrics"})
# Listed to anyone, because probes of other tools read it; the route shows the base model alone.
ANONYMOUS = frozenset({"/v1/models"})
ADMIN = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})


class Authenticate:
    """Refuses requests without a valid key; without configured keys the server is open."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self.app = app
        self.keys = tuple(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        guarded = scope["type"] == "http" and self.keys and scope["path"] not in OPEN
        if guarded and (error := self._refusal(scope)) is not None:
            record_of(scope).error = error
            await error_response(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> TurretError | None:
        given = _given_key(Headers(scope=scope))
        if not given and scope["path"] in ANONYMOUS:
            return None
        key = self._find(given)
        if key is None:
            return Unauthorized(
                "the API key is unknown" if given else "there is no API key",
                "this server asks for one",
                "Send 'Authorization: Bearer KEY'.",
            )
        if _changes_adapters(scope) and not key.admin:
            return Forbidden(
                "this key may not change adapters",
                "loading and unloading need an admin key",
                "Use an admin key.",
            )
        record_of(scope).caller = key.sha256[:16]
        return None

    def _find(self, given: str) -> ApiKey | None:
        digest = hashlib.sha256(given.encode()).hexdigest()
        found = None
        for key in self.keys:  # all of them: the time must not tell which one matched
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def _given_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "")


def _changes_adapters(scope: Scope) -> bool:
    writes = scope["method"] not in {"GET", "HEAD"}
    return scope["path"] in ADMIN or (writes and scope["path"].startswith("/v1/adapters"))
