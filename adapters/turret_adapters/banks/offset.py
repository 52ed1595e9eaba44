"""The offset vectors of every resident adapter: one table per site, one row per slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from turret_adapters.banks.slot_tables import SlotTables
from turret_adapters.components import Component, Offset
from turret_adapters.groups import Group
from turret_adapters.site_weights import weight_at
from turret_adapters.spec import ModelShape, Site
from turret_kernels import gpu, native
from turret_kernels.elementwise import OffsetTable, add_offset
from turret_kernels.entries import Entries


class OffsetBank:
    """Offsets after the bias of a linear, or at an activation. Threads as in `LowRankBank`.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        device: where the tables live.
        base_bias: the base's own bias at a site, None where it has none; an absolute offset
            replaces it.
    """

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        device: torch.device,
        base_bias: Callable[[Site], Tensor | None],
    ):
        self.capturable = native.lib is not None or gpu.serves(device)
        self._base_bias = base_bias

        def make(site: Site) -> OffsetTable:
            # empty: the system gives memory to a row when it is first written.
            vectors = torch.empty(num_slots, shape.width(site.module), device=device)
            return OffsetTable(vectors, torch.zeros(num_slots, dtype=torch.uint8, device=device))

        self._tables = SlotTables(shape, num_slots, make, _forget)
        self.touched = self._tables.touched

    @property
    def layout(self) -> int:
        """Changes when `apply` would launch its kernels on other memory."""
        return self._tables.layout

    def takes(self, component: Component) -> bool:
        """Is it stored here?"""
        return isinstance(component, Offset)

    def demand(self, components: Sequence[Offset]) -> dict[Site, int]:
        """Nothing: every slot has a row of its own."""
        return {}

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """They always fit."""

    def put(self, slot: int, components: Sequence[Offset]) -> bool:
        """Store an adapter's offsets. Always true: a slot brings its rows."""
        sums: dict[Site, Tensor] = {}
        for component in components:
            site, vector = component.site, component.vector.float()
            bias = self._base_bias(site) if component.absolute else None
            if bias is not None:
                vector = vector - bias.float().cpu()
            sums[site] = sums[site] + vector if site in sums else vector
        with self._tables.fill(slot, list(sums)) as tables:
            for site, vector in sums.items():
                tables[site].vectors[slot].copy_(vector)
                tables[site].present[slot] = 1
        return True

    def clear(self, slot: int) -> None:
        """Forget a slot; an empty one is fine."""
        self._tables.clear(slot)

    def apply(self, layer: int, group: Group, y: Tensor, x: Tensor, entries: Entries) -> None:
        """Add the offsets to `y` [T, columns of the group], in place.

        Arguments as in `LowRankBank.apply`; `x` does not matter.
        """
        for module, table, column in self._tables.at(layer, group):
            add_offset(y, table, entries, column, weight_at(entries, layer, module))


def _forget(table: OffsetTable, slot: int) -> None:
    table.present[slot] = 0
