"""The offset vectors of every resident adapter: one table per site, one row per slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from turret_adapters.groups import Group, first_column, num_points, point
from turret_adapters.spec import ModelShape, Module, Offset, Site
from turret_kernels.elementwise import add_offset
from turret_kernels.low_rank import Entries


class OffsetBank:
    """Offsets after the bias. Threads as in `LowRankBank`.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        device: where the tables live.
        dtype: the served dtype.
        base_bias: the base's own bias at a site, None where it has none; an absolute offset
            replaces it.

    Attributes:
        component: what the bank stores.
        touched: per slot, the bits `point(layer, group)` of the groups it acts on.
    """

    component = Offset

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        device: torch.device,
        dtype: torch.dtype,
        base_bias: Callable[[Site], Tensor | None],
    ):
        self.touched = [0] * num_slots
        self.capturable, self.layout = False, 0  # torch ops
        self._shape, self._device, self._dtype = shape, device, dtype
        self._base_bias = base_bias
        self._tables: dict[Site, Tensor] = {}  # [slots, out]; rows without an offset are zero
        self._taken: list[list[Site]] = [[] for _ in range(num_slots)]
        self._groups: list[tuple[tuple[Module, Tensor, int], ...]] = [()] * num_points(shape)

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
        mask = 0
        try:
            for site, vector in sums.items():
                table = self._table(site)
                self._taken[slot].append(site)
                table[slot].copy_(vector)
                mask |= 1 << point(site.layer, Group.of(site.module))
        except BaseException:  # out of memory: leave no trace, then tell
            self.clear(slot)
            raise
        self.touched[slot] = mask
        return True

    def clear(self, slot: int) -> None:
        """Zero the rows of a slot; an empty slot is fine."""
        self.touched[slot] = 0
        for site in self._taken[slot]:
            self._tables[site][slot].zero_()
        self._taken[slot] = []

    def apply(
        self,
        layer: int,
        group: Group,
        y: Tensor,
        x: Tensor,
        entries: Entries,
        weights: Mapping[Module, Tensor] | None,
    ) -> None:
        """Add the offsets to a group's output `y` [T, columns of the group], in place.

        Arguments as in `LowRankBank.apply`; `x` does not matter.
        """
        for module, table, column in self._groups[point(layer, group)]:
            part = entries if weights is None else replace(entries, weight=weights[module])
            add_offset(y[:, column : column + table.shape[1]], table, part)

    def _table(self, site: Site) -> Tensor:
        if site not in self._tables:
            size = len(self.touched), self._shape.dims[site.module][1]
            self._tables[site] = torch.zeros(size, dtype=self._dtype, device=self._device)
            group = Group.of(site.module)
            # One assignment: a running step sees the old tables or the new ones.
            self._groups[point(site.layer, group)] = tuple(
                (module, self._tables[Site(site.layer, module)], first_column(self._shape, module))
                for module in group.modules
                if Site(site.layer, module) in self._tables
            )
        return self._tables[site]
