"""Requests on the wire, and how their failures look: what both clients share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from typing import Any
from urllib.parse import quote

import httpx2

from turret_client.errors import ConnectionFailed, TurretError, class_of_status, error_from_body
from turret_client.parsing import invalid
from turret_client.retries import retry_after_s

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_TIMEOUT_S = 10.0
# Idle connections go before common servers (uvicorn: 5 s) drop them: a request that meets a
# closing connection would fail. How many are open is the business of the server's queue.
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=2.0)

Messages = str | Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]
Weight = float | Mapping[str, float]
Adapters = Mapping[str, Weight] | Sequence[str | Mapping[str, Any]]
Sources = Mapping[str, float] | Sequence[str | Mapping[str, Any]]


def http_options(
    base_url: str | None, api_key: str | None, timeout_s: float | None
) -> dict[str, Any]:
    """Arguments of the HTTP client; what is not given comes from the environment."""
    url = base_url or os.environ.get("TURRET_URL") or DEFAULT_URL
    key = api_key or os.environ.get("TURRET_API_KEY")
    headers = {"User-Agent": f"turret-client/{_version()}"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return {
        # OpenAI's clients want /v1 in the URL; most people copy it from there.
        "base_url": url.rstrip("/").removesuffix("/v1"),
        "headers": headers,
        "timeout": httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        "limits": LIMITS,
    }


def chat_body(
    messages: Messages,
    model: str | None,
    stream: bool,
    adapters: Adapters | None,
    params: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of POST /v1/chat/completions."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return {"messages": list(messages), **_common(model, stream, adapters, params)}


def completion_body(
    prompt: Prompt,
    model: str | None,
    stream: bool,
    adapters: Adapters | None,
    params: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of POST /v1/completions."""
    return {"prompt": prompt, **_common(model, stream, adapters, params)}


def tokenize_body(text: Messages, model: str | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """The body of POST /tokenize."""
    given = {"prompt": text} if isinstance(text, str) else {"messages": list(text)}
    return {**given, "model": model, **params}


def adapter_path(name: str) -> str:
    """The path of an adapter's resource."""
    return f"/v1/adapters/{quote(name, safe='')}"


def load_body(path: str | PathLike[str], digest: str | None, pin: bool | None) -> dict[str, Any]:
    """The body of PUT /v1/adapters/{name} for an adapter that lies somewhere."""
    return {"path": str(path), **_given(digest=digest, pin=pin)}


def derive_body(
    method: str, sources: Sources, pin: bool | None, params: Mapping[str, Any]
) -> dict[str, Any]:
    """The body of PUT /v1/adapters/{name} for an adapter made of others."""
    return {
        "derive": {"method": method, "sources": _adapters(sources), **params},
        **_given(pin=pin),
    }


def response_error(response: httpx2.Response) -> TurretError:
    """The error of a failed response whose body has been read."""
    wait_s = retry_after_s(response.headers)
    request_id = response.headers.get("x-request-id")
    try:
        body = response.json()
    except ValueError:
        body = None
    error = error_from_body(body, response.status_code, retry_after_s=wait_s, request_id=request_id)
    if error is not None:
        return error
    error = class_of_status(response.status_code)(
        f"the server answered {response.status_code} {response.reason_phrase}".rstrip(),
        "the body holds no error of Turret's: a proxy, or another program, may have answered",
        "Check base_url.",
        retry_after_s=wait_s,
        request_id=request_id,
    )
    error.status = response.status_code
    return error


def transport_error(error: httpx2.RequestError | httpx2.InvalidURL, url: httpx2.URL) -> TurretError:
    """The error of a request that got no answer, or not all of it."""
    why = str(error) or type(error).__name__
    match error:
        case httpx2.UnsupportedProtocol() | httpx2.InvalidURL():
            return ConnectionFailed(
                f"{str(url)!r} is not the URL of a server",
                why,
                "Give base_url, or TURRET_URL, as http://host:port.",
            )
        case httpx2.SSEError():
            return invalid(why)
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            failed = ConnectionFailed(
                f"no server answers at {url}",
                why,
                "Start one with `turret serve`, or correct base_url or TURRET_URL.",
            )
            failed.retryable = True  # nothing was sent
            return failed
        case httpx2.TimeoutException():
            return ConnectionFailed(
                f"{url} did not answer in time", why, "Raise timeout_s, or ask for fewer tokens."
            )
    return ConnectionFailed(f"the connection to {url} broke", why, "Ask again.")


def decode(response: httpx2.Response) -> Any:
    """The JSON of a response whose body has been read; None where it says it has none.

    Raises:
        InvalidAnswer: it is none.
    """
    if response.status_code == 204:
        return None
    try:
        return response.json()
    except ValueError as error:
        raise invalid(f"it is not JSON: {error}") from error


def _common(
    model: str | None, stream: bool, adapters: Adapters | None, params: Mapping[str, Any]
) -> dict[str, Any]:
    body: dict[str, Any] = {**params}
    if model is not None:
        body["model"] = model
    if adapters is not None:
        body["adapters"] = _adapters(adapters)
    if stream:
        body["stream"] = True
        body.setdefault("stream_options", {"include_usage": True})
    return body


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _adapters(adapters: Adapters) -> list[Mapping[str, Any]]:
    if isinstance(adapters, Mapping):
        return [{"name": name, "weight": weight} for name, weight in adapters.items()]
    return [{"name": one} if isinstance(one, str) else one for one in adapters]


def _version() -> str:
    try:
        return version("turret-client")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
