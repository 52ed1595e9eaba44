"""The changed rows of the embedding and the head of every resident adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turret_adapters.banks.budget_bank import BudgetBank
from turret_adapters.components import RowDelta
from turret_adapters.groups import Group
from turret_adapters.site_weights import weight_at
from turret_adapters.spec import ModelShape
from turret_kernels import gpu, native
from turret_kernels.entries import Entries
from turret_kernels.row_delta import ChangedRows, RowTable, embed_row_delta, head_row_delta


class RowDeltaBank(BudgetBank[RowDelta, RowTable]):
    """Changed rows, in float32."""

    kind, noun = RowDelta, "changed rows"

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        max_bytes: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        super().__init__(
            shape, num_slots, max_bytes, device, lambda site: RowTable(num_slots, device)
        )
        # At the head; graphs begin behind the embedding.
        is_native = native.lib is not None and dtype == torch.bfloat16
        self.capturable = is_native or gpu.serves(device)

    def num_bytes(self, part: RowDelta) -> int:
        """See BudgetBank."""
        return part.num_bytes

    def on_device(self, parts: Sequence[RowDelta]) -> ChangedRows:
        """See BudgetBank."""
        ids, delta = parts[0].ids, parts[0].delta.float()
        if len(parts) > 1:
            ids, place = torch.cat([part.ids for part in parts]).unique(return_inverse=True)
            every = torch.cat([part.delta.float() for part in parts])
            delta = torch.zeros(len(ids), every.shape[1]).index_add_(0, place, every)
        return ChangedRows(ids.to(self._device), delta.to(self._device))

    def apply(self, layer: int, group: Group, y: Tensor, x: Tensor, entries: Entries) -> None:
        """Act on the embedded tokens (`x` is their ids) or on the logits `y`, in place."""
        act = embed_row_delta if group is Group.EMBED else head_row_delta
        for module, table, _ in self._tables.at(layer, group):
            act(y, x, table, entries, weight_at(entries, layer, module))
