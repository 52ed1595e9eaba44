"""API keys: everything needs one, except what probes and scrapers read.

Keys are found by their SHA-256; the keys themselves are never kept.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from turret_server.api.error_responses import error_response
from turret_server.errors import Forbidden, TurretError, Unauthorized
from turret_server.telemetry.record import record_of
from turret_server.tenancy import principal
from turret_server.tenancy.principal import Principal
from turret_server.tenancy.service import Tenancy

OPEN = frozenset({"/health", "/ping", "/ready", "/version"})
# Shown to anyone, because probes and scrapers read them; without a key the routes name less: the
# base model alone, and no tenants.
METRICS = "/metrics"
ANONYMOUS = frozenset({"/v1/models", METRICS})
_VLLM_CHANGES = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_NEEDS = {
    principal.Scope.INFER: "asking for answers",
    principal.Scope.ADAPTERS: "loading and unloading adapters",
    principal.Scope.ADMIN: "administration",
}


class Authenticate:
    """Refuses requests without a valid key; without configured keys the server is open."""

    def __init__(self, app: ASGIApp, tenancy: Tenancy) -> None:
        self.app = app
        self.tenancy = tenancy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        guarded = scope["type"] == "http" and not self.tenancy.is_open
        if not guarded or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        caller, error = self._caller(scope)
        record = record_of(scope)
        record.principal = caller
        if error is not None:
            record.error = error
            await error_response(error)(scope, receive, send)
            return
        await self.app(scope, receive, send if caller is None else self._with_limits(caller, send))

    def _caller(self, scope: Scope) -> tuple[Principal | None, TurretError | None]:
        """Who calls, and why they may not."""
        given = _given_key(Headers(scope=scope))
        if not given and scope["path"] in ANONYMOUS:
            return None, None
        caller = self.tenancy.find(given)
        if caller is None:
            return None, Unauthorized(
                "the API key is unknown" if given else "there is no API key",
                "this server asks for one, that has neither expired nor been revoked",
                "Send 'Authorization: Bearer KEY'.",
            )
        if scope["path"] == METRICS:
            return caller, None  # any key may; one with the scope sees more
        needed = _needed(scope)
        if not caller.has(needed):
            return caller, Forbidden(
                f"this key may not do {scope['method']} {scope['path'][:128]}",
                f"{_NEEDS[needed]} needs the scope {needed.value!r}",
                "Use a key that has it.",
            )
        return caller, None

    def _with_limits(self, caller: Principal, send: Send) -> Send:
        """Tell the tenant what is left of its quotas, with every response."""

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.tenancy.meters.of(caller.tenant).headers().items():
                    headers[name] = value
            await send(message)

        return send_with_limits


def _given_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "")


def _needed(scope: Scope) -> principal.Scope:
    path, writes = scope["path"], scope["method"] not in {"GET", "HEAD"}
    if path.startswith("/v1/admin"):
        return principal.Scope.ADMIN
    if path in _VLLM_CHANGES or (writes and path.startswith("/v1/adapters")):
        return principal.Scope.ADAPTERS
    return principal.Scope.INFER
