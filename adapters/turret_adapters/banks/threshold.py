"""The activation thresholds of every resident adapter: one number per site and slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from turret_adapters.banks.neurons import NeuronCopies
from turret_adapters.banks.scale import check_alone
from turret_adapters.banks.slot_tables import SlotTables
from turret_adapters.banks.split_linear import splits_natively
from turret_adapters.components import Component, Threshold
from turret_adapters.groups import Group
from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels import gpu, native
from turret_kernels.activation import Activation
from turret_kernels.entries import Entries
from turret_kernels.sparse_mlp import MlpWeights, sparse_mlp
from turret_kernels.threshold import act_threshold_mul, threshold


class ThresholdBank:
    """Thresholds behind the gate (CATS) and before linears (TEAL). Threads as in `LowRankBank`.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        device: where the tables live.
        dtype: the served dtype.
        max_neuron_bytes: second copies of MLP weights, with which dead neurons are skipped.
    """

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        device: torch.device,
        dtype: torch.dtype,
        max_neuron_bytes: int,
    ):
        is_native = native.lib is not None and dtype == torch.bfloat16
        self.capturable = (is_native and splits_natively(shape)) or gpu.serves(device)
        self._shape = shape

        def make(site: Site) -> Tensor:
            return torch.full((num_slots,), -1.0, device=device)

        self._tables = SlotTables(shape, num_slots, make, _forget)
        self.touched = self._tables.touched
        self._neurons = NeuronCopies(shape, max_neuron_bytes)
        self._gated: list[list[int]] = [[] for _ in range(num_slots)]  # layers with a copy, by slot

    @property
    def layout(self) -> int:
        """Changes when `gate` and `linear` would launch their kernels on other memory."""
        return self._tables.layout

    @property
    def neurons_layout(self) -> int:
        """Changes when `mlp` would launch its kernel on other memory."""
        return self._neurons.layout

    def takes(self, component: Component) -> bool:
        """Is it stored here?"""
        return isinstance(component, Threshold)

    def demand(self, components: Sequence[Threshold]) -> dict[Site, int]:
        """One per site."""
        return {component.site: 1 for component in components}

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Can these adapters act on one request together?

        Raises:
            AdapterUnsupported: two of them threshold the same site.
        """
        check_alone(demands, "threshold")

    def put(self, slot: int, components: Sequence[Threshold]) -> bool:
        """Store an adapter's thresholds. Always true: a slot brings its numbers."""
        with self._tables.fill(slot, [component.site for component in components]) as tables:
            for component in components:
                tables[component.site][slot] = component.value
            self._gated[slot] = [c.site.layer for c in components if c.site.module is Module.ACT]
            self._neurons.acquire(self._gated[slot])
        return True

    def clear(self, slot: int) -> None:
        """Forget a slot; an empty one is fine."""
        self._tables.clear(slot)
        self._neurons.release(self._gated[slot])
        self._gated[slot] = []

    def has_sparse_mlp(self, layer: int) -> bool:
        """Can `mlp` read less than everything in this layer?"""
        return self._neurons.at(layer) is not None

    def mlp(
        self, layer: int, x: Tensor, weights: MlpWeights, entries: Entries
    ) -> tuple[Tensor, Tensor]:
        """A whole MLP for few rows, all with a threshold at ACT: its output, and what down read."""
        ((_, table, _),) = self._tables.at(layer, Group.ACT)
        return sparse_mlp(x, weights, self._neurons.at(layer), table, entries)

    def gate(self, layer: int, gate_up: Tensor, entries: Entries, activation: Activation) -> Tensor:
        """`act(gate) * up` [T, I] with the thresholds of a layer; some entry has one."""
        ((_, table, _),) = self._tables.at(layer, Group.ACT)
        return act_threshold_mul(gate_up, table, entries, activation)

    def change_inputs(
        self, layer: int, group: Group, x: Tensor, inputs: dict[Module, Tensor], entries: Entries
    ) -> None:
        """Put what the thresholded linears of a group read in `inputs`; some entry has one.

        Args:
            layer: number of the decoder layer.
            group: which linears.
            x: [T, in], what a linear reads that `inputs` does not name.
            inputs: by linear, where they read something else.
            entries: what acts on which rows.
        """
        for module, table, _ in self._tables.at(layer, group):
            inputs[module] = threshold(inputs.get(module, x), table, entries)


def _forget(table: Tensor, slot: int) -> None:
    table[slot] = -1.0
