"""The loader thread: it reads adapters, compiles them, and alone writes into the banks.

Only into slots that nobody has pinned. A slot's number is given out after everything in it was
written: that is what makes an adapter visible atomically.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.errors import AdapterChanged, AdapterError, AdapterUnsupported
from turret_adapters.host_cache import HostCache
from turret_adapters.loading import LoadedAdapter, Origin, StrPath, describe_program
from turret_adapters.records import Record
from turret_adapters.residency import Residency
from turret_adapters.spec import Program
from turret_adapters.wants import Want

log = logging.getLogger(__name__)

# Reads a folder; compiles what the last argument wants by its digest. See `read_adapter`.
Reader = Callable[
    [Origin, tuple[StrPath, ...] | None, Callable[[str], bool]], tuple[str, Program | None]
]


@dataclass(frozen=True, slots=True)
class Load:
    """What to load, and who waits for it.

    Attributes:
        origin: its folder, or what to derive it from.
        roots: folders that may be read, None for all.
        digest: the only content that is accepted, None for any.
        future: gets the facts, or why it was refused.
    """

    origin: Origin
    roots: tuple[StrPath, ...] | None
    digest: str | None
    future: Future[LoadedAdapter] = field(default_factory=Future)


class Loader:
    """A thread that serves wants first, then loads.

    Args:
        lock: guards `residency` and `host`; notified by `wake`.
        residency: who is to be resident.
        host: compiled adapters.
        banks: what the slots hold.
        read: reads adapters.
        on_resident: called from this thread when an adapter became resident or failed.
        warm: what is loaded becomes resident where there is room to spare.
    """

    def __init__(
        self,
        lock: threading.Lock,
        residency: Residency,
        host: HostCache,
        banks: DeviceBanks,
        read: Reader,
        on_resident: Callable[[], None],
        *,
        warm: bool = True,
    ):
        self._warms = warm
        self._lock, self._wake = lock, threading.Condition(lock)
        self._residency, self._host, self._banks = residency, host, banks
        self._read, self._on_resident = read, on_resident
        self._loads: deque[Load] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="adapter-loader", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There may be work. Call it with the lock."""
        self._wake.notify()

    def load(self, job: Load) -> None:
        """Load an adapter after those before it."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the adapter store is closed")
            self._loads.append(job)
            self.wake()

    def close(self) -> None:
        """End the thread; loads that did not begin are cancelled."""
        with self._lock:
            self._closed = True
            for job in self._loads:
                job.future.cancel()
            self._loads.clear()
            self.wake()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._wake.wait_for(self._has_work)
                if self._closed:
                    return
                want = None if self._residency.blocked else self._residency.first_want()
                job = self._loads.popleft() if want is None and self._loads else None
                garbage = self._residency.take_garbage()
            try:
                self._clear(garbage)
                if want is not None:
                    self._serve(want)
                elif job is not None:
                    self._load(job)
            except Exception:  # a callback's: the thread must live, or nothing loads any more
                log.exception("the adapter loader met an unexpected error")

    def _has_work(self) -> bool:
        return bool(self._closed or self._loads or self._residency.has_work)

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
            error = AdapterError(
                f"adapter {digest[:12]} did not become resident",
                f"{type(error).__name__}: {error}",
                "See the server's log, then load it again.",
            )
        with self._lock:
            self._residency.fail(digest, error)

    def _make_resident(self, digest: str, protected: frozenset[str] | None) -> bool:
        """Put an adapter into a slot; evict for it unless `protected` is None."""
        program = self._program(digest)
        if program is None:
            return True  # forgotten meanwhile
        slot = self._take_slot(protected)
        if slot is None:
            return False
        try:
            while not self._banks.put(slot, program.components):
                others = [] if protected is None else self._make_room(protected)
                self._clear(others)
                if not others:
                    self._give_back(slot)
                    return False
        except BaseException:  # out of memory: the slot is free again, then tell
            self._give_back(slot)
            raise
        with self._lock:
            self._residency.place(digest, slot)
        return True

    def _take_slot(self, protected: frozenset[str] | None) -> int | None:
        with self._lock:
            slot = self._residency.take_free()
            if slot is not None or protected is None:
                return slot
            slot = self._residency.evict(protected)
        if slot is not None:
            self._banks.clear(slot)
        return slot

    def _make_room(self, protected: frozenset[str]) -> list[int]:
        with self._lock:
            return self._residency.make_room(protected)

    def _clear(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._banks.clear(slot)
            self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        with self._lock:
            self._residency.give_back(slot)

    def _program(self, digest: str) -> Program | None:
        """The program from the host or from disk, None if it was forgotten meanwhile."""
        with self._lock:
            record, program = self._residency.records.get(digest), self._host.get(digest)
        if record is None or program is not None:
            return program
        try:
            found, program = self._read(record.origin, record.roots, lambda found: found == digest)
        except AdapterError as error:  # it was sound when it was loaded
            raise _changed(digest, f"{error.what.rstrip('.')}: {error.why}") from error
        if program is None:
            why = f"{str(record.origin)!r} holds another adapter now ({found[:12]})"
            raise _changed(digest, why)
        with self._lock:
            if digest in self._residency.records:
                self._host.put(digest, program)
        return program

    def _load(self, job: Load) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            digest, program = self._read(
                job.origin, job.roots, lambda d: job.digest in (None, d) and self._is_new(d)
            )
            if job.digest not in (None, digest):
                raise AdapterUnsupported(
                    f"the adapter {str(job.origin)!r} was not loaded",
                    f"its digest is {digest}, and {job.digest} is asked for",
                    "Restore its files, or ask for the digest that they have.",
                )
            loaded = None if program is not None else self._revive(digest, job)
            if loaded is None:  # it is new, or was forgotten while it was read
                if program is None:
                    digest, program = self._read(job.origin, job.roots, lambda digest: True)
                assert program is not None, "it was wanted"
                loaded = self._register(digest, program, job)
        except Exception as error:  # whatever it was: who loads must hear of it
            job.future.set_exception(error)
            return
        job.future.set_result(loaded)
        if self._warms:
            self._warm(digest)

    def _is_new(self, digest: str) -> bool:
        with self._lock:
            return digest not in self._residency.records

    def _revive(self, digest: str, job: Load) -> LoadedAdapter | None:
        """Keep a loaded adapter, whatever was said before; None if it has just gone."""
        with self._lock:
            record = self._residency.records.get(digest)
            if record is None:
                return None
            record.forgotten, record.error = False, None
            record.origin, record.roots = job.origin, job.roots
            return record.loaded

    def _register(self, digest: str, program: Program, job: Load) -> LoadedAdapter:
        demand = self._banks.demand(program.components)
        self._banks.check_fits([demand])
        loaded = describe_program(digest, program)
        with self._lock:
            self._residency.records.add(Record(loaded, demand, job.origin, job.roots))
            self._host.put(digest, program)
        return loaded

    def _warm(self, digest: str) -> None:
        """Where there is room to spare, spare the first request the wait."""
        with self._lock:
            record, residency = self._residency.records.get(digest), self._residency
            if record is None or record.slot is not None or not residency.has_free_slot:
                return
        try:
            if self._make_resident(digest, None):
                self._on_resident()  # somebody may have asked meanwhile
        except Exception as error:  # whatever it was: its requests must hear of it
            self._fail(digest, error)
            self._on_resident()


def _changed(digest: str, why: str) -> AdapterChanged:
    what = f"adapter {digest[:12]} did not become resident"
    return AdapterChanged(what, why, "Load it again to serve what is there now.")
