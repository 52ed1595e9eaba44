"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import httpx2

from turret_client import wire
from turret_client.adapters import ClientAdapters
from turret_client.answers import Answer, Model, Tokens, parse_answer
from turret_client.documents import Document, Page, layout_body, parse_pages, question
from turret_client.errors import EngineUnavailable, TurretError
from turret_client.parsing import parse, parse_list
from turret_client.retries import wait_before_retry
from turret_client.streams import Stream
from turret_client.tenants import ClientKeys, ClientTenants
from turret_client.usage import UsageRow, usage_path
from turret_client.wire import Adapters, Messages, Prompt


class Client:
    """Talks to one server. Thread-safe; close it, or use it in a `with` block.

    Args:
        base_url: root of the server; TURRET_URL, or else http://127.0.0.1:8000, by default.
        api_key: TURRET_API_KEY by default.
        timeout_s: longest silence of the server; None waits for ever.
        max_retries: how often to ask again where the server is overloaded (429), restarting (503)
            or cannot be reached. What the server asks to wait is waited.
        transport: replaces the network, for tests and Unix sockets.

    Attributes:
        adapters: lists, loads, derives, pins and unloads adapters.
        tenants: makes and changes tenants, grants adapters; tells their usage.
        keys: makes, rotates and ends their keys.

    Every call raises a `TurretError`: see `turret_client.errors` for the tree.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float | None = 600.0,
        max_retries: int = 2,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        options = wire.http_options(base_url, api_key, timeout_s)
        self._http = httpx2.Client(transport=transport, **options)
        self._max_retries = max_retries
        self.adapters = ClientAdapters(self)
        self.tenants = ClientTenants(self)
        self.keys = ClientKeys(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        stream: Literal[False] = False,
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Answer: ...

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        stream: Literal[True],
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Stream: ...

    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        stream: bool = False,
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Answer | Stream:
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
        return self._generate("/v1/chat/completions", body, stream)

    @overload
    def ask(
        self,
        text: str,
        *documents: Document,
        model: str | None = None,
        stream: Literal[False] = False,
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Answer: ...

    @overload
    def ask(
        self,
        text: str,
        *documents: Document,
        model: str | None = None,
        stream: Literal[True],
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Stream: ...

    def ask(
        self,
        text: str,
        *documents: Document,
        model: str | None = None,
        stream: bool = False,
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Answer | Stream:
        """Ask a question about documents; the rest as for `chat`.

        Args:
            text: the question; may be empty where a task of `layout` asks it.
            documents: pictures, PDFs or OCR results; see `turret_client.document`.
            model: as for `chat`.
            stream: as for `chat`.
            adapters: as for `chat`.
            params: `layout`, such as {"task": "docvqa", "cite": True}, or any field of a chat.

        Raises:
            OSError: a file cannot be read.
        """
        body = wire.chat_body(question(text, documents), model, stream, adapters, params)
        return self._generate("/v1/chat/completions", body, stream)

    def layout(self, source: Document, **params: Any) -> tuple[Page, ...]:
        """A document as text, page by page, as prompts show it; no model is asked.

        Args:
            source: see `turret_client.document`.
            params: `mode`, `pages`, `ocr`, `format`, `boxes`.

        Raises:
            OSError: the file cannot be read.
        """
        return parse_pages(self.request("POST", "/v1/layout", layout_body(source, params)))

    @overload
    def complete(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        stream: Literal[False] = False,
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Answer: ...

    @overload
    def complete(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        stream: Literal[True],
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Stream: ...

    def complete(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        stream: bool = False,
        adapters: Adapters | None = None,
        **params: Any,
    ) -> Answer | Stream:
        """Continue a text, its token ids, or a list of either; arguments as for `chat`."""
        body = wire.completion_body(prompt, model, stream, adapters, params)
        return self._generate("/v1/completions", body, stream)

    def models(self) -> tuple[Model, ...]:
        """What can be named as `model`: the base first, then recipes and adapters."""
        return parse_list(Model, self.request("GET", "/v1/models"))

    def tokenize(self, text: Messages, *, model: str | None = None, **params: Any) -> Tokens:
        """Token ids of a text, or of a conversation as `chat` would send it to the model."""
        body = wire.tokenize_body(text, model, params)
        return parse(Tokens, self.request("POST", "/tokenize", body))

    def detokenize(self, tokens: Sequence[int], *, model: str | None = None, **params: Any) -> str:
        """The text of token ids."""
        body = {"tokens": list(tokens), "model": model, **params}
        return self.request("POST", "/detokenize", body)["prompt"]

    def usage(self, since: str | None = None, until: str | None = None) -> tuple[UsageRow, ...]:
        """What the tenant of this key used, per day, key and model.

        Args:
            since: first day, as 2026-11-28.
            until: last day.
        """
        return parse_list(UsageRow, self.request("GET", usage_path(None, since, until)))

    def health(self) -> bool:
        """Whether the engine is up. Raises where no server answers at all."""
        return self._probe("/health")

    def ready(self) -> bool:
        """Whether new requests are welcome: false also while the server is shutting down."""
        return self._probe("/ready")

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Call any route, with the client's retries and errors; returns the decoded JSON."""
        return wire.decode(self._send(method, path, body))

    def _generate(self, path: str, body: Mapping[str, Any], stream: bool) -> Answer | Stream:
        response = self._send("POST", path, body, stream=stream)
        return Stream(response) if stream else parse_answer(wire.decode(response))

    def _probe(self, path: str) -> bool:
        try:
            self._send_once(self._http.build_request("GET", path), stream=False)
        except EngineUnavailable:
            return False
        return True

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, stream: bool = False
    ) -> httpx2.Response:
        attempt = 0
        while True:
            try:
                return self._send_once(
                    self._http.build_request(method, path, json=body), stream=stream
                )
            except TurretError as error:
                wait_s = wait_before_retry(error, attempt, self._max_retries)
                if wait_s is None:
                    raise
            time.sleep(wait_s)
            attempt += 1

    def _send_once(self, request: httpx2.Request, *, stream: bool) -> httpx2.Response:
        try:
            response = self._http.send(request, stream=True)
            if stream and response.is_success:
                return response
            try:
                response.read()
            finally:
                response.close()
        except httpx2.RequestError as error:
            raise wire.transport_error(error, self._http.base_url) from error
        if not response.is_success:
            raise wire.response_error(response)
        return response
