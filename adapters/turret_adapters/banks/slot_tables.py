"""Tables with one row per slot, one table per site: what the elementwise banks are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from turret_adapters.groups import Group, first_column, num_points, point
from turret_adapters.spec import ModelShape, Module, Site

T = TypeVar("T")


class SlotTables(Generic[T]):
    """Tables by site, made when the first adapter acts there.

    One thread puts and clears, another reads `at`: a slot that is read is never written.

    Args:
        shape: the base model.
        num_slots: rows of every table.
        make: a table for a site.
        forget: make a slot's row of a table inactive.

    Attributes:
        touched: per slot, the bits `point(layer, group)` of the groups it acts on.
        layout: counts the tables; a graph recorded before a new one is stale.
    """

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        make: Callable[[Site], T],
        forget: Callable[[T, int], None],
    ):
        self.touched = [0] * num_slots
        self.layout = 0
        self._shape, self._make, self._forget = shape, make, forget
        self._tables: dict[Site, T] = {}
        self._taken: list[list[Site]] = [[] for _ in range(num_slots)]
        self._groups: list[tuple[tuple[Module, T, int], ...]] = [()] * num_points(shape)

    def at(self, layer: int, group: Group) -> tuple[tuple[Module, T, int], ...]:
        """The tables of a group's sites, with the column where each site begins."""
        return self._groups[point(layer, group)]

    @contextmanager
    def fill(self, slot: int, sites: Sequence[Site]) -> Iterator[Mapping[Site, T]]:
        """Write an empty slot's rows inside; if that fails nothing of it remains."""
        try:
            for site in sites:
                self._taken[slot].append(site)
                self._table(site)
            yield self._tables
        except BaseException:  # out of memory: leave no trace, then tell
            self.clear(slot)
            raise
        for site in sites:
            self.touched[slot] |= 1 << point(site.layer, Group.of(site.module))

    def clear(self, slot: int) -> None:
        """Forget a slot; an empty one is fine."""
        self.touched[slot] = 0
        for site in self._taken[slot]:
            if site in self._tables:
                self._forget(self._tables[site], slot)
        self._taken[slot] = []

    def _table(self, site: Site) -> None:
        if site in self._tables:
            return
        self._tables[site] = self._make(site)
        self.layout += 1
        group = Group.of(site.module)
        # One assignment: a running step sees the old tables or the new ones.
        self._groups[point(site.layer, group)] = tuple(
            (module, self._tables[Site(site.layer, module)], first_column(self._shape, module))
            for module in group.modules
            if Site(site.layer, module) in self._tables
        )
