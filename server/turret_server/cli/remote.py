"""A running server as the commands see it: the few calls they make, and its errors as ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec

from turret_server.errors import TurretError
from turret_server.loadtest.sse import SseParser
from turret_server.loadtest.wire import Answer, decode_answer

_CONNECT_TIMEOUT_S = 10.0
_SILENCE_TIMEOUT_S = 600.0  # a streaming server pings sooner; loading an adapter does not


class RemoteError(TurretError):
    """The server refused, failed, or is not there."""


class Remote:
    """Calls one server over one pool of connections. Use as an async context manager.

    Args:
        url: its root; a trailing `/v1`, as OpenAI's clients want it, is cut off.
        api_key: sent as bearer token.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def __aenter__(self) -> Remote:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            # Idle connections go before common servers (uvicorn: 5 s) drop them.
            connector=aiohttp.TCPConnector(keepalive_timeout=2.0),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_SILENCE_TIMEOUT_S
            ),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def models(self) -> list[dict[str, Any]]:
        """What can be named as `model`: cards with at least an `id`, the base model first.

        Raises:
            RemoteError: the server is not there, refuses, or has none.
        """
        if cards := _cards(await self.call("GET", "/v1/models"), self.url):
            return cards
        raise RemoteError(f"{self.url} serves no model", "its list is empty", "Check --url.")

    async def check_model(self, name: str) -> None:
        """Ask whether a name, or a combination such as `a:0.7+b`, is served.

        Raises:
            RemoteError: it is not.
        """
        await self.call("GET", f"/v1/models/{quote(name, safe='')}")

    async def adapters(self) -> list[dict[str, Any]]:
        """The cards of the loaded adapters.

        Raises:
            RemoteError: the server is not there, or refuses.
        """
        return _cards(await self.call("GET", "/v1/adapters"), self.url)

    async def put_adapter(self, name: str, **fields: str | bool | None) -> dict[str, Any]:
        """Serve an adapter under a name, replacing what had it, or pin it; returns its card.

        Args:
            name: what clients send as `model`.
            fields: `path`, `digest` and `pin` of the route; None leaves one out.

        Raises:
            RemoteError: the adapter or its path is refused, or the key grants no loading.
        """
        body = {field: value for field, value in fields.items() if value is not None}
        return await self.call("PUT", f"/v1/adapters/{quote(name, safe='')}", body)

    async def unload_adapter(self, name: str) -> None:
        """Stop serving an adapter.

        Raises:
            RemoteError: nothing of this name is loaded, or the key grants no unloading.
        """
        await self.call("DELETE", f"/v1/adapters/{quote(name, safe='')}")

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """Send one request and return the JSON of its answer.

        Raises:
            RemoteError: any other status than 2xx, no answer, or one that is not JSON.
        """
        try:
            async with self._session.request(method, self.url + path, **_json(body)) as response:
                data = await response.read()
                if not response.ok:
                    raise self._refused(response, data)
                return msgspec.json.decode(data)
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error
        except msgspec.MsgspecError as error:
            raise _foreign(self.url) from error

    async def stream_chat(self, body: dict[str, Any]) -> AsyncGenerator[Answer]:
        """Ask for a streamed chat completion and yield its chunks as they arrive.

        Closing the generator closes the connection, which makes the server stop.

        Raises:
            RemoteError: refused, failed on the way, or cut off before the end.
        """
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        parser, ended = SseParser(), False
        try:
            async with self._session.post(
                f"{self.url}/v1/chat/completions", **_json(body)
            ) as response:
                if not response.ok:
                    raise self._refused(response, await response.read())
                async for piece in response.content.iter_any():
                    for data in parser.feed(piece):
                        if data == b"[DONE]":
                            return
                        chunk = decode_answer(data)
                        if chunk.error is not None:
                            raise _from_body({"error": chunk.error}) or _foreign(self.url)
                        ended = ended or any(choice.finish_reason for choice in chunk.choices)
                        yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error
        except msgspec.MsgspecError as error:
            raise _foreign(self.url) from error
        if not ended:
            raise RemoteError(
                "the answer was cut off", "the connection closed before its end", "Ask again."
            )

    def _refused(self, response: aiohttp.ClientResponse, data: bytes) -> RemoteError:
        try:
            error = _from_body(msgspec.json.decode(data))
        except msgspec.MsgspecError:
            error = None
        if error is None:
            error = RemoteError(
                f"{self.url} answered {response.status} {response.reason}",
                "something between here and Turret may have, or another program listens there",
                "Check --url.",
            )
        if response.status == 401:
            error.fix = "Give --api-key, or set TURRET_API_KEY."
        return error

    def _unreachable(self, error: Exception) -> RemoteError:
        if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
            return RemoteError(
                f"{self.url!r} is not the URL of a server",
                "it lacks http:// or https://, or a host",
                "Give one such as --url http://127.0.0.1:8000.",
            )
        why = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            if isinstance(error, aiohttp.ClientConnectorError) and error.strerror:
                why = error.strerror  # without aiohttp's own words around it
            return RemoteError(
                f"no server answers at {self.url}",
                why,
                "Start one with `turret serve demo`, or name another with --url.",
            )
        return RemoteError(
            f"the connection to {self.url} broke",
            why,
            "Try again; the log of the server may say more.",
        )


def _json(body: object) -> dict[str, Any]:
    if body is None:
        return {}
    return {"data": msgspec.json.encode(body), "headers": {"Content-Type": "application/json"}}


def _cards(body: Any, url: str) -> list[dict[str, Any]]:
    cards = body.get("data") if isinstance(body, dict) else None
    if isinstance(cards, list) and all(isinstance(c, dict) and "id" in c for c in cards):
        return cards
    raise _foreign(url)


def _from_body(body: Any) -> RemoteError | None:
    """The error in a body: Turret's with its three parts, other servers' with a message alone."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):
        return RemoteError(error)
    if not isinstance(error, dict):
        return None
    if error.get("what"):
        return RemoteError(*(str(error.get(part) or "") for part in ("what", "why", "fix")))
    return RemoteError(str(error["message"])) if error.get("message") else None


def _foreign(url: str) -> RemoteError:
    return RemoteError(
        f"the answer of {url} is not understood",
        "it is not what Turret or another OpenAI server would send",
        "Check --url.",
    )
