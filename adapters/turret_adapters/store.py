"""Adapters on disk, on the host and on the device: load, pin, evict. No step waits for one.

Two threads meet here. The *engine thread* asks (`try_pin`, `unpin`, `forget`); each call is a few
dictionary operations under a lock. The *loader thread* (`loader_thread.py`) reads files, compiles
them, and alone writes into the banks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.errors import AdapterError
from turret_adapters.files import FileLimits
from turret_adapters.host_cache import HostCache
from turret_adapters.loader_thread import Load, Loader
from turret_adapters.loading import LoadedAdapter, Origin, StrPath, read_adapter
from turret_adapters.positions import Reach
from turret_adapters.reach import recipe_reach
from turret_adapters.residency import Residency
from turret_adapters.spec import ModelShape, Program, Site
from turret_adapters.weight_table import Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """How much may be resident.

    Attributes:
        max_resident: adapters on the device at once (slots).
        max_rank_rows: rank rows per site, shared by the resident adapters. On a CPU a row that was
            never used takes address space, not memory.
        max_ternary_rows: rank rows per site for adapters whose factors are -1, 0 or 1 times a scale
            (ComPEFT), an eighth of the bytes of the others; with 0 they are adapters like others.
        max_delta_bytes: sparse deltas on the device, and again as much for changed rows of the
            embedding and the head.
        max_neuron_bytes: second copies of MLP weights, with which CATS skips neurons. Layers beyond
            it are computed whole and masked.
        max_host_bytes: compiled adapters kept on the host; others are read from disk again.
        warm: what is loaded becomes resident where there is room; else when it is asked for.
        files: bounds on what a folder may hold.
    """

    max_resident: int = 64
    max_rank_rows: int = 1024
    max_ternary_rows: int = 0
    max_delta_bytes: int = 1 << 30
    max_neuron_bytes: int = 1 << 30
    max_host_bytes: int = 256 << 20
    warm: bool = True
    files: FileLimits = field(default_factory=FileLimits)

    def pool_bytes(self, shape: ModelShape, dtype: torch.dtype) -> int:
        """What rank rows take of a GPU once adapters act at every linear of the layers."""
        width = sum(sum(shape.size(site.module)) for site in shape.sites() if site.layer >= 0)
        return width * (self.max_rank_rows * dtype.itemsize + self.max_ternary_rows // 4)


class AdapterStore:
    """Every adapter that requests may name, identified by the digest of its content.

    Args:
        shape: the base model.
        limits: how much may be resident.
        device: where the banks live.
        dtype: the served dtype.
        base_bias: the base's own bias at a site, None where it has none.
        on_resident: called from the loader thread when an adapter that was asked for became
            resident or failed; wakes the engine.
        banks: those of the device, where `shape` is not what this process holds; else made here.

    Attributes:
        banks: what the slots hold, for `StepPlan`.
    """

    def __init__(
        self,
        shape: ModelShape,
        limits: StoreLimits,
        device: torch.device,
        dtype: torch.dtype,
        base_bias: Callable[[Site], Tensor | None] = lambda site: None,
        on_resident: Callable[[], None] = lambda: None,
        banks: DeviceBanks | None = None,
    ):
        self.banks = banks or DeviceBanks(
            shape,
            limits.max_resident,
            limits.max_rank_rows,
            device,
            dtype,
            base_bias,
            limits.max_delta_bytes,
            limits.max_neuron_bytes,
            limits.max_ternary_rows,
        )
        self._keep_ternary = limits.max_ternary_rows > 0
        self._shape = replace(shape, max_rank=limits.max_rank_rows)
        self._files, self._dtype, self._pin = limits.files, dtype, device.type == "cuda"
        self._lock = threading.Lock()
        # Guarded by the lock.
        self._residency = Residency(limits.max_resident, self.banks.check_fits)
        self._host = HostCache(limits.max_host_bytes)
        self._loader = Loader(
            self._lock,
            self._residency,
            self._host,
            self.banks,
            self._read,
            on_resident,
            warm=limits.warm,
        )

    def load(
        self,
        origin: Origin,
        roots: Iterable[StrPath] | None = None,
        digest: str | None = None,
    ) -> Future[LoadedAdapter]:
        """Read, validate and compile an adapter, in the loader thread.

        Args:
            origin: its folder, or what to derive it from; read again if its program was dropped
                from the host.
            roots: folders that may be read, None for all.
            digest: the only content that is accepted, None for any.

        Returns:
            The facts; or AdapterError with what, why and fix, and then nothing of it remains.
        """
        job = Load(origin, None if roots is None else tuple(roots), digest)
        self._loader.load(job)
        return job.future

    def check(self, digests: Sequence[str]) -> None:
        """Can this recipe ever run? Ask once, when a request arrives.

        Raises:
            AdapterNotFound: a digest is not loaded.
            AdapterUnsupported: its adapters can never be resident together, or not beside those
                that are held.
            AdapterError: one of them failed to become resident.
        """
        with self._lock:
            self._residency.check(tuple(digests))

    def reach(
        self, digests: Sequence[str], weights: Sequence[Weight], prompt: Sequence[int]
    ) -> Reach | None:
        """Where a recipe that was checked acts in a request with this prompt.

        Returns:
            None for everywhere, with nothing before the prompt.

        Raises:
            AdapterNotFound: a digest is not loaded.
            AdapterUnsupported: virtual tokens of a weight that means nothing.
        """
        with self._lock:
            loaded = [self._residency.records.loaded(digest) for digest in digests]
        return recipe_reach(loaded, weights, prompt)

    def try_pin(self, digests: Sequence[str]) -> tuple[int, ...] | None:
        """Pin every adapter of a recipe, or none.

        Returns:
            Their slots, valid until `unpin`; None if one is not resident: it is then on its way
            (`on_resident` tells), or `obstacle` tells why not.
        """
        with self._lock:
            slots = self._residency.try_pin(tuple(digests), time.monotonic())
            if slots is None:
                self._loader.wake()
            return slots

    def unpin(self, digests: Iterable[str]) -> None:
        """Undo one `try_pin` that succeeded, exactly once."""
        with self._lock:
            for digest in digests:
                if self._residency.unpin(digest):
                    self._remove(digest)
            self._loader.wake()

    def hold(self, digests: Iterable[str]) -> None:
        """Keep exactly these adapters on the device from now on, whatever else is asked for.

        They are fetched before all others. Recipes that do not fit beside them are refused.

        Raises:
            AdapterNotFound: one is not loaded.
            AdapterUnsupported: they do not fit together; nothing has changed.
        """
        with self._lock:
            self._residency.hold(digests)
            self._loader.wake()

    def forget(self, digest: str) -> None:
        """Remove an adapter, at once or when its last pin goes; an unknown digest is fine."""
        with self._lock:
            record = self._residency.records.get(digest)
            if record is None:
                return
            if record.pins:
                record.forgotten = True
            else:
                self._remove(digest)
                self._loader.wake()

    def obstacle(self, digests: Sequence[str]) -> AdapterError | None:
        """Why a recipe can't run any more; None if it runs as soon as it is resident."""
        with self._lock:
            return self._residency.obstacle(tuple(digests))

    def failed(self, digest: str) -> AdapterError | None:
        """Why an adapter is not and will not be resident; None if nothing stands in its way."""
        with self._lock:
            return self._residency.records.problem(digest)

    def resident(self) -> list[str]:
        """Digests on the device."""
        with self._lock:
            return self._residency.records.resident()

    def loaded(self) -> list[str]:
        """Digests that may be pinned."""
        with self._lock:
            return self._residency.records.digests()

    def on_host(self) -> list[str]:
        """Digests whose compiled programs are on the host."""
        with self._lock:
            return self._host.digests()

    @property
    def num_layers(self) -> int:
        """Of the base model."""
        return self._shape.num_layers

    @property
    def num_pins(self) -> int:
        """Pins held over all adapters; zero when nothing runs."""
        with self._lock:
            return self._residency.records.num_pins

    @property
    def host_bytes(self) -> int:
        """Bytes of compiled adapters on the host."""
        with self._lock:
            return self._host.num_bytes

    def close(self) -> None:
        """Stop the loader thread; loads that did not begin are cancelled."""
        self._loader.close()

    def _remove(self, digest: str) -> None:
        """Under the lock."""
        self._residency.remove(digest)
        self._host.discard(digest)

    def _read(
        self,
        origin: Origin,
        roots: tuple[StrPath, ...] | None,
        is_wanted: Callable[[str], bool],
    ) -> tuple[str, Program | None]:
        return read_adapter(
            origin,
            self._shape,
            self._dtype,
            roots=roots,
            limits=self._files,
            is_wanted=is_wanted,
            pin=self._pin,
            keep_ternary=self._keep_ternary,
        )
