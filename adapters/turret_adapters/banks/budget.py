"""A budget of bytes that the slots of a bank share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from turret_adapters.errors import AdapterUnsupported
from turret_adapters.spec import Site


class ByteBudget:
    """Counts the bytes that slots take.

    Args:
        num_slots: adapters that can be resident at once.
        max_bytes: of all of them together.
        noun: what takes the bytes, for the message.
    """

    def __init__(self, num_slots: int, max_bytes: int, noun: str):
        self._max_bytes, self._noun = max_bytes, noun
        self._taken = [0] * num_slots

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        return sum(self._taken)

    def try_take(self, slot: int, num_bytes: int) -> bool:
        """Take bytes for an empty slot, if that many are left."""
        if self.used + num_bytes > self._max_bytes:
            return False
        self._taken[slot] = num_bytes
        return True

    def release(self, slot: int) -> None:
        """Give a slot's bytes back; an empty slot is fine."""
        self._taken[slot] = 0

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Do adapters that take these bytes per site fit together?

        Raises:
            AdapterUnsupported: they exceed the budget.
        """
        total = sum(sum(demand.values()) for demand in demands)
        if total > self._max_bytes:
            raise AdapterUnsupported(
                "the adapter cannot become resident"
                if len(demands) == 1
                else "the adapters cannot become resident together",
                f"their {self._noun} take {_mib(total)} MiB, and there are {_mib(self._max_bytes)}",
                f"Restart with --adapter-delta-mib {_mib(total)} or more.",
            )


def _mib(num_bytes: int) -> int:
    return -(-num_bytes // (1 << 20))
