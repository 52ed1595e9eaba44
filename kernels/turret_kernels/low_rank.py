"""Low-rank branches of many adapters over one batch: `y[rows] += w * (x[rows] @ A.T) @ B`.

Every linear of the model owns a pool of *rank rows*: row i of `a` and row i of `b` together are
one rank of one adapter. An adapter of rank r occupies r consecutive rows, its *slot* says which,
so ranks and targets mix freely and nothing is padded. A batch brings *entries*: (slot, weight,
consecutive token rows). A row may lie in several entries (stacked adapters); rows in none are
untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class RankPool:
    """The rank rows of one linear, on the device.

    Attributes:
        a: [R, in_features], served dtype.
        b: [R, out_features], served dtype; the adapter's scale is folded in.
        start: int32 [S] on the host, first rank row of each slot.
        count: int32 [S] on the host, rank of each slot here; 0 = the adapter does not act here.
    """

    a: Tensor
    b: Tensor
    start: Tensor
    count: Tensor


@dataclass(slots=True)
class Entries:
    """Which adapter acts on which token rows in this step (host tensors).

    Attributes:
        slot: int32 [E].
        weight: float32 [E].
        row_start: int32 [E], first token row.
        row_count: int32 [E], at least 1.
    """

    slot: Tensor
    weight: Tensor
    row_start: Tensor
    row_count: Tensor

    def __len__(self) -> int:
        return self.slot.shape[0]


def low_rank(
    y: Tensor, x: Tensor, pools: Sequence[RankPool], entries: Entries, columns: Sequence[int]
) -> None:
    """Add every entry's low-rank branch to `y`, in place, for the slices of one fused site.

    Args:
        y: [T, sum(out_features)] output of the base linear, contiguous.
        x: [T, in_features] its input, contiguous.
        pools: one per slice (q, k, v; gate, up; or one).
        entries: what acts where.
        columns: first column of each slice in `y`.
    """
    low_rank_reference(y, x, pools, entries, columns)


def low_rank_reference(
    y: Tensor, x: Tensor, pools: Sequence[RankPool], entries: Entries, columns: Sequence[int]
) -> None:
    """The obvious loop; ranks are accumulated in float32."""
    for slot, weight, row, rows in zip(
        entries.slot.tolist(),
        entries.weight.tolist(),
        entries.row_start.tolist(),
        entries.row_count.tolist(),
        strict=True,
    ):
        for pool, column in zip(pools, columns, strict=True):
            start, rank = int(pool.start[slot]), int(pool.count[slot])
            if rank == 0:
                continue
            a, b = pool.a[start : start + rank], pool.b[start : start + rank]
            hidden = x[row : row + rows].float() @ a.float().T
            delta = (hidden * weight) @ b.float()
            out = y[row : row + rows, column : column + b.shape[1]]
            out.copy_(out.float() + delta)
