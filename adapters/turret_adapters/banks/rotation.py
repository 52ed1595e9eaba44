"""The input rotations of every resident adapter, in memory of their own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from turret_adapters.banks.budget import ByteBudget
from turret_adapters.banks.slot_tables import SlotTables
from turret_adapters.banks.split_linear import splits_natively
from turret_adapters.components import Component, InputRotation
from turret_adapters.groups import Group
from turret_adapters.site_weights import weight_at
from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels import native
from turret_kernels.entries import Entries
from turret_kernels.rotation import BlockTable, rotate


class RotationBank:
    """Rotated inputs of linears. Threads as in `LowRankBank`, memory as in `SparseDeltaBank`.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        max_bytes: of all resident rotations together.
        device: where they live.
        dtype: the served dtype; the rotations themselves are float32.

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
        self.capturable = is_native and splits_natively(shape)
        self.budget = ByteBudget(num_slots, max_bytes, "input rotations")
        self._device = device
        self._tables = SlotTables(shape, num_slots, lambda site: BlockTable(num_slots), _forget)
        self.touched = self._tables.touched

    @property
    def layout(self) -> int:
        """Changes when the kernels would be launched on other memory."""
        return self._tables.layout

    def takes(self, component: Component) -> bool:
        """Is it stored here?"""
        return isinstance(component, InputRotation)

    def demand(self, components: Sequence[InputRotation]) -> dict[Site, int]:
        """Bytes that an adapter takes, per site."""
        return {component.site: component.num_bytes for component in components}

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Can adapters of these demands be resident together, with the bank to themselves?

        Raises:
            AdapterUnsupported: they exceed the budget.
        """
        self.budget.check_fits(demands)

    def put(self, slot: int, components: Sequence[InputRotation]) -> bool:
        """Store an adapter's rotations; all, or nothing where the budget does not suffice."""
        if not self.budget.try_take(slot, sum(self.demand(components).values())):
            return False
        try:
            with self._tables.fill(slot, [component.site for component in components]) as tables:
                for component in components:
                    tables[component.site].set(slot, component.blocks.to(self._device))
        except BaseException:
            self.budget.release(slot)
            raise
        return True

    def clear(self, slot: int) -> None:
        """Free the memory of a slot; an empty one is fine."""
        self._tables.clear(slot)
        self.budget.release(slot)

    def change_inputs(
        self, layer: int, group: Group, x: Tensor, inputs: dict[Module, Tensor], entries: Entries
    ) -> None:
        """Put what the rotated linears of a group read in `inputs`; as `ThresholdBank`."""
        for module, table, _ in self._tables.at(layer, group):
            weight = weight_at(entries, layer, module)
            inputs[module] = rotate(inputs.get(module, x), table, entries, weight)


def _forget(table: BlockTable, slot: int) -> None:
    table.set(slot, None)
