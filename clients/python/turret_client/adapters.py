"""The adapters of a running server."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from turret_client import wire
from turret_client.answers import Adapter
from turret_client.parsing import parse, parse_list
from turret_client.wire import Sources

if TYPE_CHECKING:
    from turret_client.client import Client


class ClientAdapters:
    """The adapters of a running server. Changing them needs an admin key where there are keys."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> tuple[Adapter, ...]:
        """All that are loaded."""
        return parse_list(Adapter, self._client.request("GET", "/v1/adapters"))

    def get(self, name: str) -> Adapter:
        """One of them.

        Raises:
            NotFound: it is not loaded.
        """
        return parse(Adapter, self._client.request("GET", wire.adapter_path(name)))

    def load(
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
        return self._put(name, wire.load_body(path, digest, pin))

    def derive(
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
        return self._put(name, wire.derive_body(method, sources, pin, params))

    def pin(self, name: str) -> Adapter:
        """Keep an adapter on the device, whatever else is asked for.

        Raises:
            NotFound: it is not loaded.
            Unprocessable: it does not fit beside those that are pinned.
        """
        return self._put(name, {"pin": True})

    def unpin(self, name: str) -> Adapter:
        """Let an adapter leave the device when others need the room.

        Raises:
            NotFound: it is not loaded.
        """
        return self._put(name, {"pin": False})

    def unload(self, name: str) -> None:
        """Stop serving an adapter; requests in flight finish with it.

        Raises:
            NotFound: it is not loaded.
        """
        self._client.request("DELETE", wire.adapter_path(name))

    def _put(self, name: str, body: Mapping[str, Any]) -> Adapter:
        return parse(Adapter, self._client.request("PUT", wire.adapter_path(name), body))
