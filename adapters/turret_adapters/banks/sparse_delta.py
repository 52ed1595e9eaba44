"""The sparse changes of every resident adapter, in memory of their own size."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from turret_adapters.banks.budget import ByteBudget
from turret_adapters.banks.slot_tables import SlotTables
from turret_adapters.components import Component, SparseDelta
from turret_adapters.groups import Group
from turret_adapters.site_weights import weight_at
from turret_adapters.spec import ModelShape, Site
from turret_kernels import gpu, native
from turret_kernels.entries import Entries
from turret_kernels.sparse_delta import SparseMatrix, SparseTable, sparse_delta

_INDEX_BYTES = 4


class SparseDeltaBank:
    """Sparse changes of linears. Threads as in `LowRankBank`.

    Numbers of non-zeros differ by orders of magnitude, so slots have no rows of a common table:
    each brings its memory, within a budget, and gives it back.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        max_bytes: of all resident changes together.
        device: where they live.
        dtype: the served dtype.

    Attributes:
        budget: how much is taken.
    """

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        max_bytes: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        is_native = native.lib is not None and dtype == torch.bfloat16
        self.capturable = is_native or gpu.serves(device)
        self.budget = ByteBudget(num_slots, max_bytes, "sparse deltas")
        self._device, self._dtype = device, dtype

        def make(site: Site) -> SparseTable:
            return SparseTable(num_slots, *shape.dims[site.module], device)

        self._tables = SlotTables(shape, num_slots, make, _forget)
        self.touched = self._tables.touched

    @property
    def layout(self) -> int:
        """Changes when the kernels would be launched on other memory."""
        return self._tables.layout

    def takes(self, component: Component) -> bool:
        """Is it stored here?"""
        return isinstance(component, SparseDelta)

    def demand(self, components: Sequence[SparseDelta]) -> dict[Site, int]:
        """Bytes that an adapter takes, per site."""
        total: Counter[Site] = Counter()
        for part in components:
            per_value = _INDEX_BYTES + self._dtype.itemsize
            total[part.site] += part.rows.nbytes + part.values.numel() * per_value
        return dict(total)

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Can adapters of these demands be resident together, with the bank to themselves?

        Raises:
            AdapterUnsupported: they exceed the budget.
        """
        self.budget.check_fits(demands)

    def put(self, slot: int, components: Sequence[SparseDelta]) -> bool:
        """Store an adapter's changes; all of them, or nothing where the budget does not suffice."""
        if not self.budget.try_take(slot, sum(self.demand(components).values())):
            return False
        by_site: defaultdict[Site, list[SparseDelta]] = defaultdict(list)
        for component in components:
            by_site[component.site].append(component)
        try:
            with self._tables.fill(slot, list(by_site)) as tables:
                for site, parts in by_site.items():
                    tables[site].set(slot, self._on_device(parts))
        except BaseException:
            self.budget.release(slot)
            raise
        return True

    def clear(self, slot: int) -> None:
        """Free the memory of a slot; an empty one is fine."""
        self._tables.clear(slot)
        self.budget.release(slot)

    def apply(self, layer: int, group: Group, y: Tensor, x: Tensor, entries: Entries) -> None:
        """Add the changes to `y` [T, columns of the group], in place; see `LowRankBank.apply`."""
        for module, table, column in self._tables.at(layer, group):
            sparse_delta(y, x, table, entries, column, weight_at(entries, layer, module))

    def _on_device(self, parts: Sequence[SparseDelta]) -> SparseMatrix:
        part = parts[0] if len(parts) == 1 else _sum(parts)
        return SparseMatrix(
            part.rows.to(self._device),
            part.columns.to(self._device),
            part.values.to(self._device, self._dtype),
        )


def _sum(parts: Sequence[SparseDelta]) -> SparseDelta:
    """Several changes of one linear as one."""
    num_outputs = parts[0].rows.shape[0] - 1
    outputs = [torch.arange(num_outputs).repeat_interleave(part.rows.diff()) for part in parts]
    return SparseDelta.from_entries(
        parts[0].site,
        torch.cat(outputs),
        torch.cat([part.columns for part in parts]),
        torch.cat([part.values.float() for part in parts]),
        num_outputs,
    )


def _forget(table: SparseTable, slot: int) -> None:
    table.set(slot, None)
