"""The outermost layer: request id, one log line and one span per request, no exception unanswered.

Pure ASGI: it touches headers and never the body, so a stream passes through it untouched.
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from turret_server.api.error_responses import error_response
from turret_server.errors import TurretError
from turret_server.telemetry.logging import PROBES, log_request, log_unexpected
from turret_server.telemetry.record import RequestRecord, attach

if TYPE_CHECKING:
    from turret_server.telemetry.metrics import Metrics
    from turret_server.telemetry.tracing import Tracing

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Observe:
    """Gives each request an id and a record, and answers what nobody caught with a 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(id=_request_id(headers))
        tracing = None if scope["path"] in PROBES else self.tracing
        if tracing is not None:
            record.span = {}
        attach(scope, record)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:  # whatever it was: the client gets an answer, the log the rest
            log_unexpected(record, error)
            record.error = TurretError(
                "the server failed to handle the request",
                "this is a fault of the server, not of the request",
                f"Report it with the request id {record.id}.",
            )
            if status == 0:
                await error_response(record.error)(scope, receive, send_with_id)
        finally:
            self.metrics.request(record, status)
            if tracing is not None:
                tracing.end(record, scope, headers, status)
            log_request(record, scope["method"], scope["path"], status)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
