"""The changed rows of the embedding and the head of every resident adapter."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from turret_adapters.banks.budget import ByteBudget
from turret_adapters.banks.slot_tables import SlotTables
from turret_adapters.components import Component, RowDelta
from turret_adapters.groups import Group
from turret_adapters.site_weights import weight_at
from turret_adapters.spec import ModelShape, Site
from turret_kernels import gpu, native
from turret_kernels.entries import Entries
from turret_kernels.row_delta import ChangedRows, RowTable, embed_row_delta, head_row_delta


class RowDeltaBank:
    """Changed rows. Threads as in `LowRankBank`, memory as in `SparseDeltaBank`.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        max_bytes: of all resident rows together.
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
        # At the head; graphs begin behind the embedding.
        is_native = native.lib is not None and dtype == torch.bfloat16
        self.capturable = is_native or gpu.serves(device)
        self.budget = ByteBudget(num_slots, max_bytes, "changed rows")
        self._device = device
        self._tables = SlotTables(
            shape, num_slots, lambda site: RowTable(num_slots, device), _forget
        )
        self.touched = self._tables.touched

    @property
    def layout(self) -> int:
        """Changes when the kernels would be launched on other memory."""
        return self._tables.layout

    def takes(self, component: Component) -> bool:
        """Is it stored here?"""
        return isinstance(component, RowDelta)

    def demand(self, components: Sequence[RowDelta]) -> dict[Site, int]:
        """Bytes that an adapter takes, per site."""
        total: Counter[Site] = Counter()
        for part in components:
            total[part.site] += part.num_bytes
        return dict(total)

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Can adapters of these demands be resident together, with the bank to themselves?

        Raises:
            AdapterUnsupported: they exceed the budget.
        """
        self.budget.check_fits(demands)

    def put(self, slot: int, components: Sequence[RowDelta]) -> bool:
        """Store an adapter's rows; all of them, or nothing where the budget does not suffice."""
        if not self.budget.try_take(slot, sum(self.demand(components).values())):
            return False
        by_site: defaultdict[Site, list[RowDelta]] = defaultdict(list)
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
        """Act on the embedded tokens (`x` is their ids) or on the logits `y`, in place."""
        act = embed_row_delta if group is Group.EMBED else head_row_delta
        for module, table, _ in self._tables.at(layer, group):
            act(y, x, table, entries, weight_at(entries, layer, module))

    def _on_device(self, parts: Sequence[RowDelta]) -> ChangedRows:
        ids, delta = parts[0].ids, parts[0].delta.float()
        if len(parts) > 1:
            ids, place = torch.cat([part.ids for part in parts]).unique(return_inverse=True)
            every = torch.cat([part.delta.float() for part in parts])
            delta = torch.zeros(len(ids), every.shape[1]).index_add_(0, place, every)
        return ChangedRows(ids.to(self._device), delta.to(self._device))


def _forget(table: RowTable, slot: int) -> None:
    table.set(slot, None)
