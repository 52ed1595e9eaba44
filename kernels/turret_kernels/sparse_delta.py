"""Sparse changes of linears by slot: `y[rows] += w * x[rows] @ S.T`, S in CSR.

A table holds where every slot's matrix lies, so that what is recorded once (graph.py) serves
whatever is resident later. Slots that have nothing in a table are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from turret_kernels import gpu
from turret_kernels.entries import Entries
from turret_kernels.native import lib


@dataclass(frozen=True, slots=True)
class SparseMatrix:
    """An [N, K] matrix in CSR, on the device.

    Attributes:
        rows: int64 [N + 1], where each output's values begin.
        columns: int32 [nnz], each below K.
        values: [nnz], served dtype.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor


@dataclass(slots=True)
class SparseTable:
    """The matrices of one linear. Change them with `set` alone.

    Attributes:
        num_slots: S.
        in_features: K.
        out_features: N.
        device: where the matrices lie; None means torch's default.
        matrices: one per slot, or None.
        pointers: int64 [S, 3] beside them, where they lie; the kernels read it.
    """

    num_slots: int
    in_features: int
    out_features: int
    device: torch.device | None = None
    matrices: list[SparseMatrix | None] = field(init=False)
    pointers: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.matrices = [None] * self.num_slots
        self.pointers = torch.zeros(self.num_slots, 3, dtype=torch.int64, device=self.device)

    def set(self, slot: int, matrix: SparseMatrix | None) -> None:
        """Give a slot a matrix, or none; no step may be using the slot."""
        places = (0, 0, 0)
        if matrix is not None:
            parts = matrix.rows, matrix.columns, matrix.values
            assert all(part.is_contiguous() for part in parts)
            places = tuple(part.data_ptr() for part in parts)
        self.pointers[slot] = torch.tensor(places)
        self.matrices[slot] = matrix


def sparse_delta(
    y: Tensor,
    x: Tensor,
    table: SparseTable,
    entries: Entries,
    column: int = 0,
    weight: Tensor | None = None,
) -> None:
    """`y[row, column : column + N] += w * S[slot] @ x[row]` for the rows of each entry, in place.

    Args:
        y: [T, M], contiguous; float32 for logits.
        x: [T, K], contiguous.
        table: the matrices of the linear.
        entries: what acts where.
        column: where the linear's outputs begin.
        weight: float32 [E], where it differs from `entries.weight`.
    """
    if gpu.takes(x):
        from turret_kernels.gpu import sparse_delta as gpu_sparse_delta

        weight = entries.weight if weight is None else weight
        gpu_sparse_delta.sparse_delta(y, x, table, entries, column, weight)
        return
    is_native = (
        lib is not None
        and x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and y.dtype in (torch.bfloat16, torch.float32)
    )
    if not is_native or lib is None:
        sparse_delta_reference(y, x, table, entries, column, weight)
        return
    lib.turret_sparse_delta(
        y.data_ptr(),
        y.shape[1],
        column,
        table.out_features,
        x.data_ptr(),
        table.in_features,
        table.pointers.data_ptr(),
        *entries.pointers(weight),
        y.dtype == torch.float32,
    )


def sparse_delta_reference(
    y: Tensor,
    x: Tensor,
    table: SparseTable,
    entries: Entries,
    column: int = 0,
    weight: Tensor | None = None,
) -> None:
    """The same in torch, entry by entry: an output is a weighted bag of the rows of `x.T`."""
    for slot, w, rows in entries.each(weight):
        matrix = table.matrices[slot]
        if matrix is None:
            continue
        delta = F.embedding_bag(
            matrix.columns.long(),
            x[rows].float().T.contiguous(),
            matrix.rows,
            mode="sum",
            per_sample_weights=matrix.values.float(),
            include_last_offset=True,
        )
        out = y[rows, column : column + table.out_features]
        out.copy_(out.float().add_(delta.T, alpha=w))
