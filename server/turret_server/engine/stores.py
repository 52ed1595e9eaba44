"""The adapter stores of an engine: one for the main model, one for each auxiliary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from turret_adapters.errors import AdapterError
from turret_adapters.loading import LoadedAdapter, Origin
from turret_adapters.store import AdapterStore, StoreLimits
from turret_server.engine.device import ternary_rows
from turret_server.engine.messages import ErrorInfo
from turret_server.engine.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter, and the models that it was compiled for.

    Attributes:
        facts: as the first of them has it.
        num_layers: of each model that it fits, by name; "" is the main one.
        unfit: why it does not fit the others.
    """

    facts: LoadedAdapter
    num_layers: dict[str, int]
    unfit: dict[str, str]


class Stores:
    """An adapter belongs to every model that it fits, and is held on the first of them.

    Args:
        stores: by the names of the models; "" is the main one, and comes first.
    """

    def __init__(self, stores: Mapping[str, AdapterStore]) -> None:
        self._stores = dict(stores)
        self._held: dict[str, list[str]] = {}

    def __getitem__(self, model: str) -> AdapterStore:
        return self._stores[model]

    def load(
        self, origin: Origin, roots: Sequence[str] | None = None, digest: str | None = None
    ) -> Loaded:
        """Read an adapter and compile it for every model that it fits; waits for that.

        Args:
            origin: as for `AdapterStore.load`.
            roots: likewise.
            digest: likewise.

        Raises:
            AdapterError: it fits none: why not the main one.
        """
        facts: LoadedAdapter | None = None
        num_layers: dict[str, int] = {}
        refused: dict[str, AdapterError] = {}
        for model, store in self._stores.items():
            try:
                loaded = store.load(origin, roots, digest).result()
            except AdapterError as error:
                refused[model] = error
            else:
                facts = facts or loaded
                digest, num_layers[model] = loaded.digest, store.num_layers
        if facts is None:
            raise refused[""]
        return Loaded(facts, num_layers, {model: error.why for model, error in refused.items()})

    def forget(self, digest: str) -> None:
        """Remove an adapter everywhere; an unknown digest is fine."""
        for store in self._stores.values():
            store.forget(digest)

    def hold(self, digests: Iterable[str]) -> None:
        """Keep exactly these adapters on the device; see `AdapterStore.hold`."""
        loaded = {model: set(store.loaded()) for model, store in self._stores.items()}
        held: dict[str, list[str]] = {model: [] for model in self._stores}
        for digest in digests:
            held[next((m for m, known in loaded.items() if digest in known), "")].append(digest)
        try:
            for model, store in self._stores.items():
                store.hold(held[model])
        except AdapterError:
            for model, before in self._held.items():
                self._stores[model].hold(loaded[model].intersection(before))
            raise
        self._held = held

    def resident(self) -> list[str]:
        """Digests on the device, for whichever model."""
        return list(dict.fromkeys(d for store in self._stores.values() for d in store.resident()))

    def on_host(self) -> list[str]:
        """Digests whose compiled programs are on the host."""
        return list(dict.fromkeys(d for store in self._stores.values() for d in store.on_host()))

    @property
    def host_bytes(self) -> int:
        """Bytes of compiled adapters on the host."""
        return sum(store.host_bytes for store in self._stores.values())

    def close(self) -> None:
        """Stop all loader threads."""
        for store in self._stores.values():
            store.close()


def store_limits(settings: EngineSettings, device: torch.device) -> StoreLimits:
    """What the main model's adapters may take, in each of its processes."""
    return StoreLimits(
        max_resident=settings.max_resident_adapters,
        max_rank_rows=settings.adapter_rank_rows,
        max_ternary_rows=ternary_rows(settings, device),
        max_delta_bytes=settings.adapter_delta_bytes,
        max_neuron_bytes=settings.sparse_mlp_bytes,
        max_host_bytes=settings.host_adapter_bytes,
    )


class Gate:
    """An adapter store as the scheduler sees it."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store
        self.try_pin = store.try_pin
        self.unpin = store.unpin

    def failure(self, digests: Sequence[str]) -> ErrorInfo | None:
        """Why these can never become resident, if so."""
        error = self._store.obstacle(digests)
        return None if error is None else adapter_error(error)


def adapter_error(error: AdapterError) -> ErrorInfo:
    """An adapter's refusal as the error the API raises."""
    kinds = {
        "AdapterChanged": "Conflict",
        "AdapterForbidden": "Forbidden",
        "AdapterMalformed": "BadRequest",
        "AdapterNotFound": "NotFound",
        "AdapterUnsupported": "Unprocessable",
    }
    kind = kinds.get(type(error).__name__, "TurretError")
    return ErrorInfo(kind, error.what, error.why, error.fix)
