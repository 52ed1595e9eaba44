"""Who is on the device, who waits for a place there, and who must make room. Only bookkeeping.

A waiting recipe always gets its place in the end. It was checked to fit beside the held adapters
alone; whatever is neither held nor pinned can be evicted for it; pins end with their requests; and
where the free room is there but in pieces, everything moves as soon as nothing is pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from turret_adapters.banks.device import Demand
from turret_adapters.errors import AdapterError, AdapterUnsupported
from turret_adapters.records import Record, Records
from turret_adapters.wants import Want, WantQueue

_MAX_REMEMBERED = 4096  # recipes of which it is known whether they fit beside the held


class Residency:
    """The slots of the device and the claims on them. The caller serialises access.

    Args:
        num_slots: adapters that can be resident at once.
        check_fits: raises AdapterUnsupported where adapters of these demands never fit together.

    Attributes:
        records: every adapter that is loaded.
        blocked: the first want needs room that only an unpin can give.
    """

    def __init__(self, num_slots: int, check_fits: Callable[[Sequence[Demand]], None]):
        self.records = Records()
        self.blocked = False
        self._check_fits = check_fits
        self._wants = WantQueue()
        self._free = list(range(num_slots - 1, -1, -1))
        self._garbage: list[int] = []  # slots that nobody has, still to be cleared
        self._obstacles: dict[tuple[str, ...], AdapterError | None] = {}  # beside the held

    # ------------------------------------------------------------- recipes

    def check(self, recipe: tuple[str, ...]) -> None:
        """Can it ever run? Raises AdapterError if not."""
        if (obstacle := self.obstacle(recipe)) is not None:
            raise obstacle
        if len(recipe) > 1:  # alone it was checked when it was loaded
            self._check_fits([self.records.demand(digest) for digest in recipe])

    def obstacle(self, recipe: tuple[str, ...]) -> AdapterError | None:
        """Why a recipe that was checked can no longer run; None if nothing stands in its way."""
        for digest in recipe:
            if (problem := self.records.problem(digest)) is not None:
                return problem
        held = self.records.held()
        if not held:
            return None
        if recipe not in self._obstacles:
            if len(self._obstacles) >= _MAX_REMEMBERED:
                self._obstacles.clear()
            self._obstacles[recipe] = self._beside(recipe, held)
        return self._obstacles[recipe]

    def try_pin(self, recipe: tuple[str, ...], now: float) -> tuple[int, ...] | None:
        """Pin all adapters of a recipe and return their slots; else None, and it is wanted."""
        slots = self.records.pin(recipe)
        if slots is not None:
            self._wants.done(recipe)
        elif self.obstacle(recipe) is None and self._wants.ask(recipe, now):
            self.blocked = False
        return slots

    def unpin(self, digest: str) -> bool:
        """Take one pin off; was it the last of an adapter that is to be removed?"""
        record = self.records.unpin(digest)
        if record.pins or record.forgotten:
            return not record.pins
        if self.blocked and not record.held and not self._is_protected(digest):
            # Now, or a busy adapter would be pinned again before the loader looks.
            self._discard_slot(record)
        if not self.records.num_pins:
            self.blocked = False  # everything may move now
        return False

    # ------------------------------------------------------------- adapters

    def hold(self, digests: Iterable[str]) -> None:
        """Hold exactly these adapters: they become resident before others, and stay.

        Raises:
            AdapterNotFound: one is not loaded.
            AdapterUnsupported: they do not fit together; nothing has changed.
        """
        held = tuple(dict.fromkeys(digests))
        for digest in held:
            self.records.loaded(digest)
        try:
            if held:
                self._check_fits([self.records.demand(digest) for digest in held])
        except AdapterUnsupported as error:
            raise AdapterUnsupported(
                f"{len(held)} adapters cannot be pinned", error.why, f"Unpin some, or: {error.fix}"
            ) from None
        self.records.hold(held)
        self._obstacles.clear()
        self._wants.retain(lambda recipe: self.obstacle(recipe) is None)
        self.blocked = False

    def remove(self, digest: str) -> None:
        """Forget an adapter that is not pinned."""
        record = self.records.pop(digest)
        self._discard_slot(record)
        self._wants.drop(digest)
        if record.held:
            self._obstacles.clear()
        self.blocked = False

    def fail(self, digest: str, error: AdapterError) -> None:
        """It cannot become resident."""
        if (record := self.records.get(digest)) is not None:
            record.error = error
        self._wants.drop(digest)

    # ------------------------------------------------------------- slots

    def first_want(self) -> Want | None:
        """Who is to become resident next: what is held, then recipes in their order."""
        records = self.records
        absent = [d for d in records.held() if not (records.is_resident(d) or records.problem(d))]
        if absent:
            return Want(tuple(absent), frozenset(absent))
        return self._wants.first(records.is_resident)

    @property
    def has_work(self) -> bool:
        """Is there a slot to clear, or a want that is not blocked?"""
        return bool(self._garbage or (not self.blocked and self.first_want() is not None))

    @property
    def has_free_slot(self) -> bool:
        """Can an adapter become resident without evicting another?"""
        return bool(self._free)

    def take_garbage(self) -> list[int]:
        """Slots to clear and `give_back`."""
        garbage, self._garbage = self._garbage, []
        return garbage

    def take_free(self) -> int | None:
        """A slot that is clear."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """A slot is clear again."""
        self._free.append(slot)

    def evict(self, protected: Collection[str]) -> int | None:
        """A slot to clear and use, if an adapter may leave. None means blocked until an unpin."""
        slot = self._garbage.pop() if self._garbage else self.records.evict(protected)
        # In one critical section: an unpin after it finds the flag and gives its slot up.
        self.blocked = slot is None
        return slot

    def make_room(self, protected: Collection[str]) -> list[int]:
        """Slots to clear so that their rows are free; none means blocked until an unpin.

        Where nobody may leave, the room there is lies in pieces between those who stay. If no
        request uses them they all leave, and are placed one after another again.
        """
        slot = self.evict(protected)
        slots = self.records.evict_all() if slot is None else [slot]
        self.blocked = not slots
        return slots

    def place(self, digest: str, slot: int) -> None:
        """A slot holds all of an adapter from now on; it is garbage where nobody needs it."""
        record = self.records.get(digest)
        if record is None or record.slot is not None:
            self._garbage.append(slot)
        else:
            self.records.place(record, slot)

    def _is_protected(self, digest: str) -> bool:
        want = self.first_want()
        return want is not None and digest in want.protected

    def _discard_slot(self, record: Record) -> None:
        if record.slot is not None:
            self._garbage.append(record.slot)
            record.slot = None
            self.blocked = False

    def _beside(self, recipe: tuple[str, ...], held: list[str]) -> AdapterError | None:
        digests = dict.fromkeys((*recipe, *held))
        try:
            self._check_fits([self.records.demand(digest) for digest in digests])
        except AdapterUnsupported as error:
            return AdapterUnsupported(
                f"there is no room for the adapters beside {len(held)} that are pinned",
                error.why,
                f"Unpin some, or: {error.fix}",
            )
        return None
