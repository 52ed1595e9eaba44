"""The scales and paired rotations of every resident adapter, one row per slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from turret_adapters.banks.slot_tables import SlotTables
from turret_adapters.components import Component, Scale
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.groups import Group
from turret_adapters.site_weights import weight_at
from turret_adapters.spec import ModelShape, Site
from turret_kernels import gpu, native
from turret_kernels.elementwise import ScaleTable, scale
from turret_kernels.entries import Entries


class ScaleBank:
    """Scales of outputs and activations, those before or those after other components' deltas.

    Threads as in `LowRankBank`.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        device: where the tables live.
        before_deltas: which of the two it holds.
    """

    def __init__(
        self, shape: ModelShape, num_slots: int, device: torch.device, before_deltas: bool
    ):
        self.capturable = native.lib is not None or gpu.serves(device)
        self._before_deltas = before_deltas

        def make(site: Site) -> ScaleTable:
            size = num_slots, shape.width(site.module)
            return ScaleTable(
                gain=torch.empty(size, device=device),
                turn=torch.empty(size, device=device),
                distance=torch.zeros(num_slots, dtype=torch.int32, device=device),
                present=torch.zeros(num_slots, dtype=torch.uint8, device=device),
            )

        self._tables = SlotTables(shape, num_slots, make, _forget)
        self.touched = self._tables.touched

    @property
    def layout(self) -> int:
        """Changes when `apply` would launch its kernels on other memory."""
        return self._tables.layout

    def takes(self, component: Component) -> bool:
        """Is it stored here?"""
        return isinstance(component, Scale) and component.before_deltas == self._before_deltas

    def demand(self, components: Sequence[Scale]) -> dict[Site, int]:
        """One per site that it scales."""
        return {component.site: 1 for component in components}

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Can these adapters act on one request together?

        Raises:
            AdapterUnsupported: two of them scale the same site.
        """
        check_alone(demands, "scale")

    def put(self, slot: int, components: Sequence[Scale]) -> bool:
        """Store an adapter's scales. Always true: a slot brings its rows."""
        with self._tables.fill(slot, [component.site for component in components]) as tables:
            for component in components:
                table = tables[component.site]
                table.gain[slot].copy_(component.vector.float() - 1)
                if component.turn is not None:
                    table.turn[slot].copy_(component.turn)
                table.distance[slot] = component.distance
                table.present[slot] = 1
        return True

    def clear(self, slot: int) -> None:
        """Forget a slot; an empty one is fine."""
        self._tables.clear(slot)

    def apply(self, layer: int, group: Group, y: Tensor, x: Tensor, entries: Entries) -> None:
        """Scale `y` [T, columns of the group], in place.

        Arguments as in `LowRankBank.apply`; `x` does not matter.
        """
        for module, table, column in self._tables.at(layer, group):
            scale(y, table, entries, column, weight_at(entries, layer, module))


def check_alone(demands: Sequence[Mapping[Site, int]], verb: str) -> None:
    """Refuse adapters that do to one site, together, what only one of them can do.

    Raises:
        AdapterUnsupported: naming the first such site.
    """
    seen: set[Site] = set()
    for demand in demands:
        for site in demand:
            if site in seen:
                raise AdapterUnsupported(
                    "the adapters cannot act on one request together",
                    f"two of them {verb} {site}, and the result would depend on their order",
                    "Name one of them, or train one adapter that does both.",
                )
        seen.update(demand)


def _forget(table: ScaleTable, slot: int) -> None:
    table.present[slot] = 0
