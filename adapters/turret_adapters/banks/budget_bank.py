"""What the banks have in common whose slots bring memory of their own size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from turret_adapters.banks.budget import ByteBudget
from turret_adapters.banks.slot_tables import SlotTables
from turret_adapters.components import Component, by_site
from turret_adapters.spec import ModelShape, Site


class Table(Protocol):
    """What slots hold at one site."""

    def set(self, slot: int, value: Any, /) -> None:
        """Let a slot hold this, or nothing."""


C = TypeVar("C", bound=Component)
T = TypeVar("T", bound=Table)


class BudgetBank(ABC, Generic[C, T]):
    """Components whose sizes differ by orders of magnitude, so that a common table would waste it.

    Each slot brings its memory, within a budget, and gives it back. Threads as in `LowRankBank`.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        max_bytes: of all resident components together.
        device: where they live.
        make: an empty table for a site.

    Attributes:
        kind: the components it holds.
        noun: what a user calls them.
        budget: how much is taken.
        touched: per slot, the bits `point(layer, group)` of the groups it acts on.
    """

    kind: ClassVar[type[Component]]
    noun: ClassVar[str]

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        max_bytes: int,
        device: torch.device,
        make: Callable[[Site], T],
    ):
        self.budget = ByteBudget(num_slots, max_bytes, self.noun)
        self._device = device
        self._tables: SlotTables[T] = SlotTables(
            shape, num_slots, make, lambda table, slot: table.set(slot, None)
        )
        self.touched = self._tables.touched

    @abstractmethod
    def num_bytes(self, part: C) -> int:
        """What a component takes."""

    @abstractmethod
    def on_device(self, parts: Sequence[C]) -> Any:
        """What a table holds for the components of one adapter at its site."""

    @property
    def layout(self) -> int:
        """Changes when the kernels would be launched on other memory."""
        return self._tables.layout

    def takes(self, component: Component) -> bool:
        """Is it stored here?"""
        return isinstance(component, self.kind)

    def demand(self, components: Sequence[C]) -> dict[Site, int]:
        """Bytes that an adapter takes, per site."""
        total: Counter[Site] = Counter()
        for part in components:
            total[part.site] += self.num_bytes(part)
        return dict(total)

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Can adapters of these demands be resident together, with the bank to themselves?

        Raises:
            AdapterUnsupported: they exceed the budget.
        """
        self.budget.check_fits(demands)

    def put(self, slot: int, components: Sequence[C]) -> bool:
        """Store an adapter's components; all, or nothing where the budget does not suffice."""
        if not self.budget.try_take(slot, sum(self.demand(components).values())):
            return False
        at_sites = by_site(components)
        try:
            with self._tables.fill(slot, list(at_sites)) as tables:
                for site, parts in at_sites.items():
                    tables[site].set(slot, self.on_device(parts))
        except BaseException:  # out of memory: leave no trace, then tell
            self.budget.release(slot)
            raise
        return True

    def clear(self, slot: int) -> None:
        """Free the memory of a slot; an empty one is fine."""
        self._tables.clear(slot)
        self.budget.release(slot)
