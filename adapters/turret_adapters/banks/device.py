"""All banks of a device, filled and emptied together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from turret_adapters.banks.low_rank import LowRankBank
from turret_adapters.banks.offset import OffsetBank
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.groups import Group
from turret_adapters.spec import Component, ModelShape, Module, Site
from turret_kernels.low_rank import Entries

Demand = tuple[Mapping[Site, int], ...]  # one per bank


class Bank(Protocol):
    """Device residency of one primitive. One thread puts and clears, another applies."""

    component: type[Any]
    touched: list[int]
    capturable: bool  # `apply` launches native kernels alone
    layout: int  # changes when `apply` would launch them on other memory

    def demand(self, components: Sequence[Any]) -> Mapping[Site, int]:
        """What an adapter takes of the bank, per site."""
        ...

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Raise AdapterUnsupported if adapters of these demands can never be resident together."""

    def put(self, slot: int, components: Sequence[Any]) -> bool:
        """Store all of them for an empty slot, or store nothing and return False."""
        ...

    def clear(self, slot: int) -> None:
        """Forget a slot."""

    def apply(
        self,
        layer: int,
        group: Group,
        y: Tensor,
        x: Tensor,
        entries: Entries,
        weights: Mapping[Module, Tensor] | None,
    ) -> None:
        """Act on the output `y` of a group, in place."""


class DeviceBanks:
    """The banks of every primitive, by slot.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        max_rank_rows: rank rows per site.
        device: where everything lives.
        dtype: the served dtype.
        base_bias: the base's own bias at a site, None where it has none.

    Attributes:
        banks: in the order in which they act at a site.
        num_slots: as given.
    """

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        max_rank_rows: int,
        device: torch.device,
        dtype: torch.dtype,
        base_bias: Callable[[Site], Tensor | None],
    ):
        self.num_slots = num_slots
        self.low_rank = LowRankBank(shape, num_slots, max_rank_rows, device, dtype)
        offset = OffsetBank(shape, num_slots, device, dtype, base_bias)
        self.banks: tuple[Bank, ...] = (self.low_rank, offset)

    def demand(self, components: Sequence[Component]) -> Demand:
        """What an adapter takes of every bank.

        Raises:
            AdapterUnsupported: no bank holds one of the components.
        """
        known = tuple(bank.component for bank in self.banks)
        strangers = {type(c).__name__ for c in components if not isinstance(c, known)}
        if strangers:
            raise AdapterUnsupported(
                "the adapter cannot become resident",
                f"it uses {', '.join(sorted(strangers))}, which no bank holds",
                "Report it: its kind and this server do not fit together.",
            )
        return tuple(bank.demand(_of(bank, components)) for bank in self.banks)

    def check_fits(self, demands: Sequence[Demand]) -> None:
        """Can adapters of these demands be resident together, with the banks to themselves?

        Raises:
            AdapterUnsupported: they exceed the slots or a bank.
        """
        if len(demands) > self.num_slots:
            raise AdapterUnsupported(
                "the adapters cannot become resident together",
                f"they are {len(demands)}, and there are {self.num_slots} slots",
                f"Restart with --max-resident-adapters {len(demands)} or more.",
            )
        for bank, of_bank in zip(self.banks, zip(*demands, strict=True), strict=True):
            bank.check_fits(of_bank)

    def put(self, slot: int, components: Sequence[Component]) -> bool:
        """Store an adapter in an empty slot; all of it, or nothing where the room does not suffice.

        The slot must not be used by any step before this has returned true.
        """
        try:
            if all(bank.put(slot, _of(bank, components)) for bank in self.banks):
                return True
        except BaseException:
            self.clear(slot)
            raise
        self.clear(slot)
        return False

    def clear(self, slot: int) -> None:
        """Free a slot. No running step may use it."""
        for bank in self.banks:
            bank.clear(slot)


def _of(bank: Bank, components: Sequence[Component]) -> list[Component]:
    return [c for c in components if isinstance(c, bank.component)]
