"""The OpenAPI document, our reference: what FastAPI derives, plus what it can't know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from turret_server.api.auth import ANONYMOUS, OPEN

DESCRIPTION = """\
An inference-time adaptation server: one base model, many adapters, chosen by each request.

`model` names the base model, an adapter, or several adapters as `a+b` or `a:0.7+b`; `adapters`
stacks more. Requests with different adapters run in one batch. The routes under `/v1` follow
OpenAI's API, with the extensions that vLLM's clients send.

Unknown fields are refused, because a misspelt field would change what is asked for; `null`, fields
that only identify the caller (`user`, `metadata`, `store`, ...) and names that begin with `x_` are
ignored. Errors say what happened, why, and how to fix it, and name the field in `param`.
"""

_EVENT = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {"data": {"type": "string", "description": "A chunk in JSON; last, `[DONE]`."}},
}
_STREAMED = ("/v1/chat/completions", "/v1/completions")


def install_openapi(app: FastAPI) -> None:
    """Complete the generated document on its first use."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            for path in _STREAMED:
                answer = document["paths"][path]["post"]["responses"]["200"]
                answer["content"]["text/event-stream"] = {"schema": _EVENT}
            _errors_are_json(document)
            if not app.state.service.settings.tenancy.is_open:
                _require_key(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _errors_are_json(document: dict[str, Any]) -> None:
    """FastAPI documents errors in the media type of the route's success."""
    for item in document["paths"].values():
        for operation in item.values():
            for status in ("4XX", "5XX"):
                (schema,) = operation["responses"][status]["content"].values()
                operation["responses"][status]["content"] = {"application/json": schema}


def _require_key(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]
    for path in OPEN | ANONYMOUS:
        document["paths"][path]["get"]["security"] = []
