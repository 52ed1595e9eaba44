"""The input rotations of every resident adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turret_adapters.banks.budget_bank import BudgetBank
from turret_adapters.banks.split_linear import splits_natively
from turret_adapters.components import InputRotation
from turret_adapters.groups import Group
from turret_adapters.site_weights import weight_at
from turret_adapters.spec import ModelShape, Module
from turret_kernels import gpu, native
from turret_kernels.entries import Entries
from turret_kernels.rotation import BlockTable, rotate


class RotationBank(BudgetBank[InputRotation, BlockTable]):
    """Rotated inputs of linears; the rotations are float32. An adapter has one per linear."""

    kind, noun = InputRotation, "input rotations"

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        max_bytes: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        super().__init__(
            shape, num_slots, max_bytes, device, lambda site: BlockTable(num_slots, device)
        )
        is_native = native.lib is not None and dtype == torch.bfloat16 and device.type == "cpu"
        self.capturable = (is_native and splits_natively(shape)) or gpu.serves(device)

    def num_bytes(self, part: InputRotation) -> int:
        """See BudgetBank."""
        return part.num_bytes

    def on_device(self, parts: Sequence[InputRotation]) -> Tensor:
        """See BudgetBank."""
        (part,) = parts
        return part.blocks.to(self._device)

    def change_inputs(
        self, layer: int, group: Group, x: Tensor, inputs: dict[Module, Tensor], entries: Entries
    ) -> None:
        """Put what the rotated linears of a group read in `inputs`; as `ThresholdBank`."""
        for module, table, _ in self._tables.at(layer, group):
            weight = weight_at(entries, layer, module)
            inputs[module] = rotate(inputs.get(module, x), table, entries, weight)
