"""Errors on the wire: OpenAI's shape, with what, why and fix beside it."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from turret_server.api.invalid_field import invalid_field, shown
from turret_server.errors import (
    BadRequest,
    MethodNotAllowed,
    RouteNotFound,
    TurretError,
    UnsupportedMedia,
)
from turret_server.telemetry.record import record_of


def error_body(error: TurretError) -> dict[str, Any]:
    """The body of an error response, or of an error event in a stream."""
    return {
        "error": {
            "message": str(error),
            "type": error.type,
            "param": error.param,
            "code": error.code,
            "what": error.what,
            "why": error.why,
            "fix": error.fix,
        }
    }


def error_response(error: TurretError, **beside: Any) -> Response:
    """The HTTP response of an error; `beside` it other fields of the body."""
    headers = {}
    if error.retry_after_s is not None:
        # HTTP counts in whole seconds; OpenAI's clients prefer the finer header.
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
        headers["retry-after-ms"] = str(round(error.retry_after_s * 1000))
    if error.status in (408, 413):  # what is left of the body will not be read
        headers["connection"] = "close"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(
        msgspec.json.encode({**beside, **error_body(error)}),
        status_code=error.status,
        headers=headers,
        media_type="application/json",
    )


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of the app in one shape."""

    async def turret_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, TurretError)
        return _recorded(request, error)

    async def invalid_body(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _recorded(request, _from_validation(error))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        # FastAPI wraps what reading the body raises.
        cause = error.__cause__
        own = cause if isinstance(cause, TurretError) else _from_http(request, error)
        response = _recorded(request, own)
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response

    app.add_exception_handler(TurretError, turret_error)
    app.add_exception_handler(RequestValidationError, invalid_body)
    app.add_exception_handler(HTTPException, http_error)


def _recorded(request: Request, error: TurretError) -> Response:
    record_of(request.scope).error = error
    return error_response(error)


def _from_http(request: Request, error: HTTPException) -> TurretError:
    match error.status_code:
        case 404:
            return RouteNotFound(
                f"there is no route {request.url.path[:256]!r}",
                "the path is unknown",
                "GET /openapi.json lists the routes.",
            )
        case 405:
            return MethodNotAllowed(
                f"{request.method} is not allowed at {request.url.path[:256]!r}",
                "the route knows other methods",
                f"Use {(error.headers or {}).get('Allow', 'another method')}.",
            )
    own = BadRequest(str(error.detail))
    own.status = error.status_code  # type: ignore[misc]
    return own


def _from_validation(error: RequestValidationError) -> BadRequest:
    """The first problem that pydantic found, with the field as a JSON path."""
    first = error.errors()[0]
    given = first.get("input")
    if first["loc"] == ("body",):
        if isinstance(given, bytes):
            return UnsupportedMedia(
                "the body is not JSON",
                "its Content-Type is not application/json",
                "Send the header 'Content-Type: application/json'.",
            )
        return BadRequest(
            "the body is not a JSON object",
            "it is missing" if first["type"] == "missing" else f"it is {shown(given)}",
            'Send an object such as {"model": ...}.',
        )
    return invalid_field(first | {"loc": first["loc"][1:]})
