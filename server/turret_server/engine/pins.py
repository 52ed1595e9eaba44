"""Adapters that sequences hold, let go when no step can read them any more. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from turret_server.engine import rooms
from turret_server.engine.sequence import Sequence


class Pins:
    """Holds the adapters of requests in their slots.

    A sequence may leave while the device still works on its rows. Its blocks can be another's at
    once, since later steps write behind this one; a slot cannot, since the loader writes beside all
    steps. So what is dropped stays pinned until the steps that were planned by then are done.

    Args:
        stores: where each model's adapters are.
    """

    def __init__(self, stores: rooms.Rooms) -> None:
        self._rooms = stores
        self._steps = 0  # planned and not done
        self._dropped: list[Mapping[str, tuple[str, ...]]] = []

    def take(self, lead: Sequence) -> bool:
        """Pin the adapters of all members, or none: they are not resident yet."""
        return rooms.try_pin(self._rooms, lead)

    def drop(self, lead: Sequence) -> None:
        """Let go of what `take` pinned, if it did."""
        if lead.slots is None:
            return
        for member in lead.members:
            member.slots = None
        if self._steps:
            self._dropped.append(lead.adapters)
        else:
            rooms.unpin(self._rooms, lead.adapters)

    @property
    def busy(self) -> bool:
        """Is a step planned and not done?"""
        return self._steps > 0

    def begin_step(self) -> None:
        """A step was planned with whoever holds adapters now."""
        self._steps += 1

    def end_step(self) -> None:
        """The first of the planned steps is done; nobody has left yet for what it brought.

        So what was dropped until now was in no later step.
        """
        self._steps -= 1
        for adapters in self._dropped:
            rooms.unpin(self._rooms, adapters)
        self._dropped.clear()
