"""The sparse changes of every resident adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turret_adapters.banks.budget_bank import BudgetBank
from turret_adapters.components import SparseDelta
from turret_adapters.groups import Group
from turret_adapters.site_weights import weight_at
from turret_adapters.spec import ModelShape
from turret_kernels import gpu, native
from turret_kernels.entries import Entries
from turret_kernels.sparse_delta import SparseMatrix, SparseTable, sparse_delta

_INDEX_BYTES = 4


class SparseDeltaBank(BudgetBank[SparseDelta, SparseTable]):
    """Sparse changes of linears; their values are of the served dtype."""

    kind, noun = SparseDelta, "sparse deltas"

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        max_bytes: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        super().__init__(
            shape,
            num_slots,
            max_bytes,
            device,
            lambda site: SparseTable(num_slots, *shape.dims[site.module], device),
        )
        is_native = native.lib is not None and dtype == torch.bfloat16
        self.capturable = is_native or gpu.serves(device)
        self._dtype = dtype

    def num_bytes(self, part: SparseDelta) -> int:
        """See BudgetBank."""
        per_value = _INDEX_BYTES + self._dtype.itemsize
        return part.rows.nbytes + part.values.numel() * per_value

    def on_device(self, parts: Sequence[SparseDelta]) -> SparseMatrix:
        """See BudgetBank."""
        part = parts[0] if len(parts) == 1 else _sum(parts)
        return SparseMatrix(
            part.rows.to(self._device),
            part.columns.to(self._device),
            part.values.to(self._device, self._dtype),
        )

    def apply(self, layer: int, group: Group, y: Tensor, x: Tensor, entries: Entries) -> None:
        """Add the changes to `y` [T, columns of the group], in place; see `LowRankBank.apply`."""
        for module, table, column in self._tables.at(layer, group):
            sparse_delta(y, x, table, entries, column, weight_at(entries, layer, module))


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
