"""The adapters that may be named: who is resident, who is pinned, who was used last."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from turret_adapters.banks.device import Demand
from turret_adapters.errors import AdapterError, AdapterNotFound
from turret_adapters.loading import LoadedAdapter, Origin, StrPath


@dataclass(slots=True)
class Record:
    """An adapter that was loaded and not yet removed.

    Attributes:
        loaded: the facts about it.
        demand: what it takes of every bank.
        origin: for reading it again.
        roots: folders that may be read, None for all.
        slot: its place on the device, None while it is not resident.
        pins: running requests that use it.
        held: it stays resident whoever else needs the room.
        last_used: larger is later.
        forgotten: it goes with its last pin.
        error: why it cannot become resident.
    """

    loaded: LoadedAdapter
    demand: Demand
    origin: Origin
    roots: tuple[StrPath, ...] | None
    slot: int | None = None
    pins: int = 0
    held: bool = False
    last_used: int = 0
    forgotten: bool = False
    error: AdapterError | None = None


class Records:
    """Records by digest. The caller serialises access.

    Attributes:
        num_pins: over all adapters.
    """

    def __init__(self) -> None:
        self._by_digest: dict[str, Record] = {}
        self._num_held = 0
        self.num_pins = 0
        self._clock = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._by_digest

    def get(self, digest: str) -> Record | None:
        """The record, or None."""
        return self._by_digest.get(digest)

    def problem(self, digest: str) -> AdapterError | None:
        """Why it cannot run, None if it can as soon as it is resident."""
        record = self._by_digest.get(digest)
        if record is not None:
            return record.error
        return AdapterNotFound(
            f"adapter {digest[:12]} is not loaded",
            "it was never loaded here, was unloaded, or had changed when the engine was restarted",
            "Load it again.",
        )

    def loaded(self, digest: str) -> LoadedAdapter:
        """The facts about it.

        Raises:
            AdapterError: it is not loaded, or cannot become resident.
        """
        if (problem := self.problem(digest)) is not None:
            raise problem
        return self._by_digest[digest].loaded

    def demand(self, digest: str) -> Demand:
        """What it takes of every bank."""
        return self._by_digest[digest].demand

    def add(self, record: Record) -> None:
        """Add one under the digest of its content."""
        self._by_digest[record.loaded.digest] = record

    def pop(self, digest: str) -> Record:
        """Remove one."""
        record = self._by_digest.pop(digest)
        self._num_held -= record.held
        return record

    def digests(self) -> list[str]:
        """All digests."""
        return list(self._by_digest)

    def resident(self) -> list[str]:
        """Digests of the resident adapters."""
        return [digest for digest, record in self._by_digest.items() if record.slot is not None]

    def is_resident(self, digest: str) -> bool:
        """Does it have a slot?"""
        return self._by_digest[digest].slot is not None

    def place(self, record: Record, slot: int) -> None:
        """The adapter is resident in `slot` from now on."""
        record.slot = slot
        self._touch(record)

    def pin(self, digests: Sequence[str]) -> tuple[int, ...] | None:
        """Pin all of them and return their slots, or do nothing where one is not resident."""
        found = [self._by_digest.get(digest) for digest in digests]
        records = [record for record in found if record is not None]
        slots = tuple(record.slot for record in records if record.slot is not None)
        if len(slots) < len(digests):
            return None
        for record in records:
            record.pins += 1
            self.num_pins += 1
            self._touch(record)
        return slots

    def unpin(self, digest: str) -> Record:
        """Take one pin off."""
        record = self._by_digest.get(digest)
        if record is None or record.pins == 0:
            raise RuntimeError(f"adapter {digest} was unpinned more often than pinned")
        record.pins -= 1
        self.num_pins -= 1
        self._touch(record)
        return record

    def hold(self, digests: Collection[str]) -> None:
        """Hold exactly these."""
        for digest, record in self._by_digest.items():
            record.held = digest in digests
        self._num_held = len(digests)

    def held(self) -> list[str]:
        """Digests of the held adapters."""
        if not self._num_held:  # asked at every step, of thousands of records
            return []
        return [digest for digest, record in self._by_digest.items() if record.held]

    def evict(self, protected: Collection[str]) -> int | None:
        """Take the slot of the least recently used adapter that may leave.

        Those that are pinned, held or protected may not.
        """
        idle = [
            record
            for digest, record in self._by_digest.items()
            if record.slot is not None and not (record.pins or record.held or digest in protected)
        ]
        if not idle:
            return None
        victim = min(idle, key=lambda record: record.last_used)
        slot, victim.slot = victim.slot, None
        return slot

    def evict_all(self) -> list[int]:
        """Take every slot, held or not, if no running request uses one."""
        if self.num_pins:
            return []
        residents = [record for record in self._by_digest.values() if record.slot is not None]
        slots = [record.slot for record in residents if record.slot is not None]
        for record in residents:
            record.slot = None
        return slots

    def _touch(self, record: Record) -> None:
        self._clock += 1
        record.last_used = self._clock
