"""Elementwise adapters by slot: `y[t] += w * table[slot]` for the rows of each entry."""

from __future__ import annotations

from torch import Tensor

from turret_kernels.low_rank import Entries


def add_offset(y: Tensor, table: Tensor, entries: Entries) -> None:
    """Add each entry's offset vector to its rows of `y`, in place.

    Args:
        y: [T, N]; may be a column slice of a fused output.
        table: [S, N], one row per slot; slots without an offset hold zeros.
        entries: what acts where.
    """
    for slot, weight, row, rows in zip(
        entries.slot.tolist(),
        entries.weight.tolist(),
        entries.row_start.tolist(),
        entries.row_count.tolist(),
        strict=True,
    ):
        y[row : row + rows].add_(table[slot], alpha=weight)
