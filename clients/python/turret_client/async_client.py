"""The asynchronous client: `Client`, with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, overload

import httpx2

from turret_client import wire
from turret_client.answers import Adapter, Answer, Model, Tokens, parse, parse_answer, parse_list
from turret_client.errors import EngineUnavailable, TurretError
from turret_client.retries import wait_before_retry
from turret_client.streams import AsyncStream
from turret_client.wire import Adapters, Messages, Prompt, Sources


class AsyncClient:
    """Talks to one server from one event loop. Close it, or use it in an `async with` block.

    Args:
        base_url: root of the server; TURRET_URL, or else http://127.0.0.1:8000, by default.
        api_key: TURRET_API_KEY by default.
        timeout_s: longest silence of the server; None waits for ever.
        max_retries: how often to ask again where the server is overloaded (429), restarting (503)
            or cannot be reached. What the server asks to wait is waited.
        transport: replaces the network, for tests and Unix sockets.

    Attributes:
        adapters: lists, loads, derives, pins and unloads adapters.

    Every call raises a `TurretError`: see `turret_client.errors` for the tree.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float | None = 600.0,
        max_retries: int = 2,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        options = wire.http_options(base_url, api_key, timeout_s)
        self._http = httpx2.AsyncClient(transport=transport, **options)
        self._max_retries = max_retries
        self.adapters = AsyncClientAdapters(self)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    @overload
    async def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        stream: Literal[False] = False,
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Answer: ...

    @overload
    async def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        stream: Literal[True],
        adapters: Adapters | None = None,
        **params: Any,
    ) -> AsyncStream: ...

    async def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        stream: bool = False,
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Answer | AsyncStream:
        """Answer a conversation.

        Args:
            messages: as OpenAI's API wants them; a string is one question of the user.
            model: base, adapter, recipe, or a stack such as "formal:0.7+sql"; the base by default.
            stream: return at the first token, with an iterator of events.
            adapters: to stack on `model`: names, a mapping of names to weights, or the API's own
                objects. A weight is a number, or a table {module or layers: number}.
            params: any other field of the request: temperature, max_tokens, tools, …
        """
        body = wire.chat_body(messages, model, stream, adapters, params)
        return await self._generate("/v1/chat/completions", body, stream)

    @overload
    async def complete(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        stream: Literal[False] = False,
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Answer: ...

    @overload
    async def complete(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        stream: Literal[True],
        adapters: Adapters | None = None,
        **params: Any,
    ) -> AsyncStream: ...

    async def complete(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        stream: bool = False,
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Answer | AsyncStream:
        """Continue a text, its token ids, or a list of either; arguments as for `chat`."""
        body = wire.completion_body(prompt, model, stream, adapters, params)
        return await self._generate("/v1/completions", body, stream)

    async def models(self) -> tuple[Model, ...]:
        """What can be named as `model`: the base first, then recipes and adapters."""
        return parse_list(Model, await self.request("GET", "/v1/models"))

    async def tokenize(self, text: Messages, *, model: str | None = None, **params: Any) -> Tokens:
        """Token ids of a text, or of a conversation as `chat` would send it to the model."""
        body = wire.tokenize_body(text, model, params)
        return parse(Tokens, await self.request("POST", "/tokenize", body))

    async def detokenize(
        self, tokens: Sequence[int], *, model: str | None = None, **params: Any
    ) -> str:
        """The text of token ids."""
        body = {"tokens": list(tokens), "model": model, **params}
        return (await self.request("POST", "/detokenize", body))["prompt"]

    async def health(self) -> bool:
        """Whether the engine is up. Raises where no server answers at all."""
        return await self._probe("/health")

    async def ready(self) -> bool:
        """Whether new requests are welcome: false also while the server is shutting down."""
        return await self._probe("/ready")

    async def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Call any route, with the client's retries and errors; returns the decoded JSON."""
        return wire.decode(await self._send(method, path, body))

    async def _generate(
        self, path: str, body: Mapping[str, Any], stream: bool
    ) -> Answer | AsyncStream:
        response = await self._send("POST", path, body, stream=stream)
        return AsyncStream(response) if stream else parse_answer(wire.decode(response))

    async def _probe(self, path: str) -> bool:
        try:
            await self._send_once(self._http.build_request("GET", path), stream=False)
        except EngineUnavailable:
            return False
        return True

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, stream: bool = False
    ) -> httpx2.Response:
        attempt = 0
        while True:
            try:
                return await self._send_once(
                    self._http.build_request(method, path, json=body), stream=stream
                )
            except TurretError as error:
                wait_s = wait_before_retry(error, attempt, self._max_retries)
                if wait_s is None:
                    raise
            await asyncio.sleep(wait_s)
            attempt += 1

    async def _send_once(self, request: httpx2.Request, *, stream: bool) -> httpx2.Response:
        try:
            response = await self._http.send(request, stream=True)
            if stream and response.is_success:
                return response
            try:
                await response.aread()
            finally:
                await response.aclose()
        except httpx2.RequestError as error:
            raise wire.transport_error(error, self._http.base_url) from error
        if not response.is_success:
            raise wire.response_error(response)
        return response


class AsyncClientAdapters:
    """The adapters of a running server. Changing them needs an admin key where there are keys."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self) -> tuple[Adapter, ...]:
        """All that are loaded."""
        return parse_list(Adapter, await self._client.request("GET", "/v1/adapters"))

    async def get(self, name: str) -> Adapter:
        """One of them.

        Raises:
            NotFound: it is not loaded.
        """
        return parse(Adapter, await self._client.request("GET", wire.adapter_path(name)))

    async def load(
        self,
        name: str,
        path: str | PathLike[str],
        *,
        digest: str | None = None,
        pin: bool | None = None,
    ) -> Adapter:
        """Serve an adapter under a name, replacing at once what had it.

        Args:
            name: what requests send as `model`.
            path: a folder or archive on the server, below one of its adapter roots, or a Hugging
                Face id or URL that its --adapter-remote allows.
            digest: the only content that is accepted, as `Adapter.digest`; None for any.
            pin: keep it on the device, whatever else is asked for; None as the name was before.

        Raises:
            Forbidden: the path is not allowed, or the key grants no loading.
            BadRequest: the adapter is malformed.
            Unprocessable: it does not fit the base model, has another digest, or cannot be pinned
                beside those that are.
        """
        return await self._put(name, wire.load_body(path, digest, pin))

    async def derive(
        self,
        name: str,
        method: str,
        sources: Sources,
        *,
        pin: bool | None = None,
        **params: Any,
    ) -> Adapter:
        """Serve an adapter made of others, as they are now, replacing at once what had the name.

        Args:
            name: what requests send as `model`.
            method: "sum", "svd", "ties", "dare", …
            sources: names of adapters, a mapping of names to weights, or the API's own objects.
            pin: as for `load`.
            params: of the method: density, rank, seed, gamma.

        Raises:
            NotFound: a source is not served.
            Conflict: the base model or a recipe has the name.
            Unprocessable: the parameters, or the sources, do not suit the method.
        """
        return await self._put(name, wire.derive_body(method, sources, pin, params))

    async def pin(self, name: str) -> Adapter:
        """Keep an adapter on the device, whatever else is asked for.

        Raises:
            NotFound: it is not loaded.
            Unprocessable: it does not fit beside those that are pinned.
        """
        return await self._put(name, {"pin": True})

    async def unpin(self, name: str) -> Adapter:
        """Let an adapter leave the device when others need the room.

        Raises:
            NotFound: it is not loaded.
        """
        return await self._put(name, {"pin": False})

    async def unload(self, name: str) -> None:
        """Stop serving an adapter; requests in flight finish with it.

        Raises:
            NotFound: it is not loaded.
        """
        await self._client.request("DELETE", wire.adapter_path(name))

    async def _put(self, name: str, body: Mapping[str, Any]) -> Adapter:
        return parse(Adapter, await self._client.request("PUT", wire.adapter_path(name), body))
