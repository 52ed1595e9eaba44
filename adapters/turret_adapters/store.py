"""Adapters on disk, on the host and on the device: load, pin, evict. No step waits for one.

Two threads meet here. The *engine thread* asks (`try_pin`, `unpin`, `forget`); each call is a few
dictionary operations under a lock. The *loader thread* reads files, compiles them, and alone
writes into the banks, and only into slots that nobody has pinned. A slot's number is given out
after everything in it was written: that is what makes an adapter visible atomically.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.errors import AdapterError, AdapterMalformed, AdapterUnsupported, quote
from turret_adapters.files import FileLimits
from turret_adapters.host_cache import HostCache
from turret_adapters.loading import (
    LoadedAdapter,
    Origin,
    StrPath,
    describe_program,
    read_adapter,
)
from turret_adapters.positions import Reach, find_reach
from turret_adapters.records import Record, Records
from turret_adapters.spec import ModelShape, Program, Site
from turret_adapters.wants import Want, WantQueue
from turret_adapters.weight_table import Weight, numbers_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """How much may be resident.

    Attributes:
        max_resident: adapters on the device at once (slots).
        max_rank_rows: rank rows per site, shared by the resident adapters. A row that was never
            used takes address space, not memory.
        max_delta_bytes: sparse deltas on the device, and again as much for changed rows of the
            embedding and the head.
        max_host_bytes: compiled adapters kept on the host; others are read from disk again.
        files: bounds on what a folder may hold.
    """

    max_resident: int = 64
    max_rank_rows: int = 1024
    max_delta_bytes: int = 1 << 30
    max_host_bytes: int = 256 << 20
    files: FileLimits = field(default_factory=FileLimits)


@dataclass(frozen=True, slots=True)
class _Load:
    """What to load, and who waits for it."""

    origin: Origin
    roots: tuple[StrPath, ...] | None
    future: Future[LoadedAdapter]


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
    ):
        self.banks = DeviceBanks(
            shape,
            limits.max_resident,
            limits.max_rank_rows,
            device,
            dtype,
            base_bias,
            limits.max_delta_bytes,
        )
        self._shape = replace(shape, max_rank=limits.max_rank_rows)
        self._limits, self._dtype = limits, dtype
        self._on_resident = on_resident
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        # All below is guarded by the lock.
        self._records = Records()
        self._host = HostCache(limits.max_host_bytes)
        self._free = list(range(limits.max_resident - 1, -1, -1))
        self._garbage: list[int] = []  # slots that nobody has, still to be cleared
        self._loads: deque[_Load] = deque()
        self._wants = WantQueue()
        self._blocked = False  # the first want needs room that only an unpin can give
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="adapter-loader", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------- engine thread

    def load(self, origin: Origin, roots: Iterable[StrPath] | None = None) -> Future[LoadedAdapter]:
        """Read, validate and compile an adapter, in the loader thread.

        Args:
            origin: its folder, or what to derive it from; read again if its program was dropped
                from the host.
            roots: folders that may be read, None for all.

        Returns:
            The facts; or AdapterError with what, why and fix, and then nothing of it remains.
        """
        job = _Load(origin, None if roots is None else tuple(roots), Future())
        with self._lock:
            if self._closed:
                raise RuntimeError("the adapter store is closed")
            self._loads.append(job)
            self._wake.notify()
        return job.future

    def check(self, digests: Sequence[str]) -> None:
        """Can this recipe ever run? Ask once, when a request arrives.

        Raises:
            AdapterNotFound: a digest is not loaded.
            AdapterUnsupported: its adapters can never be resident together.
            AdapterError: one of them failed to become resident.
        """
        with self._lock:
            for digest in digests:
                if (problem := self._records.problem(digest)) is not None:
                    raise problem
            demands = [self._records.demand(digest) for digest in digests]
        if len(demands) > 1:  # alone it was checked when it was loaded
            self.banks.check_fits(demands)

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
            loaded = [self._records.loaded(digest) for digest in digests]
        return find_reach(
            prompt,
            [
                (facts.positions, _num_virtual(facts, weight))
                for facts, weight in zip(loaded, weights, strict=True)
            ],
        )

    def try_pin(self, digests: Sequence[str]) -> tuple[int, ...] | None:
        """Pin every adapter of a recipe, or none.

        Returns:
            Their slots, valid until `unpin`; None if one is not resident: it is then on its way
            (`on_resident` tells), or `failed` tells why not.
        """
        key = tuple(digests)
        with self._lock:
            slots = self._records.pin(key)
            if slots is not None:
                self._wants.done(key)
            elif not any(self._records.problem(digest) for digest in key):
                if self._wants.ask(key, time.monotonic()):
                    self._blocked = False
                self._wake.notify()
            return slots

    def unpin(self, digests: Iterable[str]) -> None:
        """Undo one `try_pin` that succeeded, exactly once."""
        with self._lock:
            for digest in digests:
                record = self._records.unpin(digest)
                if record.pins:
                    continue
                if record.forgotten:
                    self._remove(digest)
                elif self._blocked and not self._is_protected(digest):
                    # Now, or a busy adapter would be pinned again before the loader looks.
                    self._discard_slot(record)

    def forget(self, digest: str) -> None:
        """Remove an adapter, at once or when its last pin goes; an unknown digest is fine."""
        with self._lock:
            record = self._records.get(digest)
            if record is None:
                return
            if record.pins:
                record.forgotten = True
            else:
                self._remove(digest)

    def failed(self, digest: str) -> AdapterError | None:
        """Why an adapter is not and will not be resident; None if nothing stands in its way."""
        with self._lock:
            return self._records.problem(digest)

    def resident(self) -> list[str]:
        """Digests on the device."""
        with self._lock:
            return self._records.resident()

    def loaded(self) -> list[str]:
        """Digests that may be pinned."""
        with self._lock:
            return self._records.digests()

    def on_host(self) -> list[str]:
        """Digests whose compiled programs are on the host."""
        with self._lock:
            return self._host.digests()

    @property
    def num_pins(self) -> int:
        """Pins held over all adapters; zero when nothing runs."""
        with self._lock:
            return self._records.num_pins

    @property
    def host_bytes(self) -> int:
        """Bytes of compiled adapters on the host."""
        with self._lock:
            return self._host.num_bytes

    def close(self) -> None:
        """Stop the loader thread; loads that did not begin are cancelled."""
        with self._lock:
            self._closed = True
            for job in self._loads:
                job.future.cancel()
            self._loads.clear()
            self._wake.notify()
        self._thread.join()

    # ------------------------------------------------------------- under the lock

    def _first_want(self) -> Want | None:
        return self._wants.first(self._records.is_resident)

    def _is_protected(self, digest: str) -> bool:
        want = self._first_want()
        return want is not None and digest in want.protected

    def _discard_slot(self, record: Record) -> None:
        if record.slot is not None:
            self._garbage.append(record.slot)
            record.slot = None
            self._blocked = False
            self._wake.notify()

    def _remove(self, digest: str) -> None:
        self._discard_slot(self._records.pop(digest))
        self._host.discard(digest)
        self._wants.drop(digest)
        self._blocked = False

    # ------------------------------------------------------------- loader thread

    def _run(self) -> None:
        while True:
            with self._lock:
                self._wake.wait_for(self._has_work)
                if self._closed:
                    return
                want = None if self._blocked else self._first_want()
                job = self._loads.popleft() if want is None and self._loads else None
                garbage, self._garbage = self._garbage, []
            try:
                for slot in garbage:
                    self._clear(slot)
                if want is not None:
                    self._serve(want)
                elif job is not None:
                    self._load(job)
            except Exception:  # a callback's: the thread must live, or nothing loads any more
                log.exception("the adapter loader met an unexpected error")

    def _has_work(self) -> bool:
        wanted = not self._blocked and self._first_want() is not None
        return bool(self._closed or self._garbage or self._loads or wanted)

    def _serve(self, want: Want) -> None:
        """Make the adapters of a recipe resident, as far as there is room."""
        for digest in want.missing:
            try:
                if not self._make_resident(digest, want.protected):
                    return
            except Exception as error:  # whatever it was: its requests must hear of it
                self._fail(digest, error)
            self._on_resident()

    def _fail(self, digest: str, error: Exception) -> None:
        if not isinstance(error, AdapterError):
            log.exception("adapter %s did not become resident", digest, exc_info=error)
            error = AdapterMalformed(
                f"adapter {digest[:12]} did not become resident",
                f"{type(error).__name__}: {error}",
                "See the server's log, then load it again.",
            )
        with self._lock:
            if (record := self._records.get(digest)) is not None:
                record.error = error
            self._wants.drop(digest)

    def _make_resident(self, digest: str, protected: frozenset[str] | None) -> bool:
        """Put an adapter into a slot; evict for it unless `protected` is None."""
        program = self._program(digest)
        if program is None:
            return True  # forgotten meanwhile
        slot = self._take_slot(protected)
        if slot is None:
            return False
        try:
            while not self.banks.put(slot, program.components):
                other = self._evict(protected)
                if other is None:
                    self._give_back(slot)
                    return False
                self._clear(other)
        except BaseException:
            self._give_back(slot)
            raise
        with self._lock:
            record = self._records.get(digest)
            if record is None or record.slot is not None:
                self._garbage.append(slot)
            else:
                self._records.place(record, slot)
        return True

    def _take_slot(self, protected: frozenset[str] | None) -> int | None:
        with self._lock:
            if self._free:
                return self._free.pop()
        slot = self._evict(protected)
        if slot is not None:
            self.banks.clear(slot)
        return slot

    def _evict(self, protected: frozenset[str] | None) -> int | None:
        if protected is None:
            return None
        with self._lock:
            slot = self._garbage.pop() if self._garbage else self._records.evict(protected)
            # In one critical section: an unpin after it finds the flag and gives its slot up.
            self._blocked = slot is None
            return slot

    def _clear(self, slot: int) -> None:
        self.banks.clear(slot)
        self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        with self._lock:
            self._free.append(slot)

    def _program(self, digest: str) -> Program | None:
        """The program from the host or from disk, None if it was forgotten meanwhile."""
        with self._lock:
            record, program = self._records.get(digest), self._host.get(digest)
        if record is None or program is not None:
            return program
        found, program = self._read(record.origin, record.roots, lambda found: found == digest)
        if program is None:
            raise AdapterMalformed(
                f"adapter {digest[:12]} did not become resident",
                f"{str(record.origin)!r} holds another adapter now ({found[:12]})",
                "Load it again to serve what is there now.",
            )
        with self._lock:
            if digest in self._records:
                self._host.put(digest, program)
        return program

    def _read(
        self,
        origin: Origin,
        roots: tuple[StrPath, ...] | None,
        is_wanted: Callable[[str], bool] = lambda digest: True,
    ) -> tuple[str, Program | None]:
        return read_adapter(
            origin,
            self._shape,
            self._dtype,
            roots=roots,
            limits=self._limits.files,
            is_wanted=is_wanted,
        )

    def _load(self, job: _Load) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            digest, program = self._read(job.origin, job.roots, self._is_new)
            loaded = None if program is not None else self._revive(digest, job)
            if loaded is None:  # it is new, or was forgotten while it was read
                if program is None:
                    digest, program = self._read(job.origin, job.roots)
                assert program is not None, "it was wanted"
                loaded = self._register(digest, program, job)
        except Exception as error:
            job.future.set_exception(error)
            return
        job.future.set_result(loaded)
        self._warm(digest)

    def _is_new(self, digest: str) -> bool:
        with self._lock:
            return digest not in self._records

    def _revive(self, digest: str, job: _Load) -> LoadedAdapter | None:
        """Keep a loaded adapter, whatever was said before; None if it has just gone."""
        with self._lock:
            record = self._records.get(digest)
            if record is None:
                return None
            record.forgotten, record.error = False, None
            record.origin, record.roots = job.origin, job.roots
            return record.loaded

    def _register(self, digest: str, program: Program, job: _Load) -> LoadedAdapter:
        demand = self.banks.demand(program.components)
        self.banks.check_fits([demand])
        loaded = describe_program(digest, program)
        with self._lock:
            self._records.add(Record(loaded, demand, job.origin, job.roots))
            self._host.put(digest, program)
        return loaded

    def _warm(self, digest: str) -> None:
        """Where there is room to spare, spare the first request the wait."""
        with self._lock:
            record = self._records.get(digest)
            if record is None or record.slot is not None or not self._free:
                return
        try:
            if self._make_resident(digest, None):
                self._on_resident()  # somebody may have asked meanwhile
        except Exception as error:
            self._fail(digest, error)
            self._on_resident()


def _num_virtual(loaded: LoadedAdapter, weight: Weight) -> int:
    """Positions that an adapter of this weight puts before the prompt."""
    if not loaded.num_virtual_tokens or weight == 0:
        return 0
    if numbers_of(weight) != {1}:
        raise AdapterUnsupported(
            f"the weight of adapter {loaded.digest[:12]} cannot be {quote(weight)}",
            f"it puts {loaded.num_virtual_tokens} virtual tokens before the prompt: they are there "
            "or not, and without them there is nothing that a part of them could be added to",
            "Give it the weight 1, or leave it out.",
        )
    return loaded.num_virtual_tokens
