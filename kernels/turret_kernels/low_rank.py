"""Low-rank branches of many adapters over one batch: `y[rows] += w * (x[rows] @ A.T) @ B`.

Every linear of the model owns a pool of *rank rows*: row i of `a` and row i of `b` together are
one rank of one adapter. An adapter of rank r occupies r consecutive rows, its *slot* says which,
so ranks and targets mix freely and nothing is padded. A batch brings *entries*: (slot, weight,
consecutive token rows). A row may lie in several entries (stacked adapters); rows in none are
untouched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.entries import Entries
from turret_kernels.native import TILES, lib

# Native products take ranks in pairs.
ROW_ALIGNMENT = 2


@dataclass(slots=True, kw_only=True)
class RankSlots:
    """Who owns which rows of a pool.

    An adapter takes `round_up(rank, ROW_ALIGNMENT)` rows from an aligned start.

    Attributes:
        slots: int32 [3, S], beside the rows: the three below.
        start: int32 [S], first rank row of each slot.
        count: int32 [S], rank of each slot here; 0 = the adapter does not act here.
        experts: int32 [S]; N > 0 = a mixture chosen by every token: the last N ranks are the
            logits of a gate, softmax over them (float32) weighs N equal groups of the ranks before,
            and the last N rows of `b` are zero.
        max_rank: most ranks that a slot has had, gates included: GPU kernels are launched for it.
        has_mixtures: whether a slot has had experts: only then does a GPU look for them.
    """

    slots: Tensor
    start: Tensor = field(init=False)
    count: Tensor = field(init=False)
    experts: Tensor = field(init=False)
    max_rank: int = field(init=False, default=0)
    has_mixtures: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.start, self.count, self.experts = self.slots

    def expect(self, count: int, experts: int = 0) -> None:
        """A slot is about to own `count` ranks; who writes `slots` says so first."""
        self.max_rank = max(self.max_rank, count)
        self.has_mixtures |= experts > 0

    def assign(self, slot: int, start: int, count: int, experts: int = 0) -> None:
        """Let a slot own `count` ranks from row `start` on; 0 = it does not act here."""
        self.expect(count, experts)
        for row, value in zip(self.slots, (start, count, experts), strict=True):
            row[slot] = value


@dataclass(slots=True)
class RankPool(RankSlots):
    """The rank rows of one linear, on the device.

    The order of the numbers inside an adapter's rows is private to this file: write them with
    `write_rank_rows`.

    Attributes:
        a: [R, in_features], served dtype.
        b: [R, out_features], served dtype; the adapter's scale is folded in.
        native: laid out for (and served by) the native kernel.
    """

    a: Tensor
    b: Tensor
    native: bool = field(init=False)

    def __post_init__(self) -> None:
        RankSlots.__post_init__(self)
        self.native = (
            lib is not None
            and self.a.dtype == torch.bfloat16
            and self.a.device.type == "cpu"
            and self.a.shape[1] % 2 == 0
            and self.b.shape[1] % 16 == 0
        )


def write_rank_rows(pool: RankPool, start: int, a: Tensor, b: Tensor) -> None:
    """Write an adapter's factors into the pool's rows from `start`; no step may be reading them.

    Args:
        pool: the linear's pool.
        start: first row, a multiple of ROW_ALIGNMENT.
        a: [rank, in_features].
        b: [rank, out_features].
    """
    rank = a.shape[0]
    if not pool.native or lib is None:
        pool.a[start : start + rank].copy_(a, non_blocking=True)
        pool.b[start : start + rank].copy_(b, non_blocking=True)
        return
    a, b = a.to(pool.a.dtype).contiguous(), b.to(pool.b.dtype).contiguous()
    lib.turret_write_rank_rows(
        pool.a.data_ptr(),
        pool.b.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        start,
        rank,
        a.shape[1],
        b.shape[1],
    )


class _Slice(ctypes.Structure):
    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("start", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("column", ctypes.c_int64),
        ("experts", ctypes.c_void_p),
    )


@dataclass(slots=True)
class RankSlices:
    """The pools of one fused site with their columns; build once, use every step."""

    pools: Sequence[RankPool]
    columns: Sequence[int]
    table: ctypes.Array[_Slice] | None = field(init=False)

    def __post_init__(self) -> None:
        self.table = None
        if all(pool.native for pool in self.pools):
            self.table = (_Slice * len(self.pools))(
                *(
                    _Slice(
                        p.a.data_ptr(),
                        p.b.data_ptr(),
                        p.start.data_ptr(),
                        p.count.data_ptr(),
                        None,
                        p.b.shape[1],
                        column,
                        p.experts.data_ptr(),
                    )
                    for p, column in zip(self.pools, self.columns, strict=True)
                )
            )


def low_rank(
    y: Tensor,
    x: Tensor,
    slices: RankSlices,
    entries: Entries,
    weights: Sequence[Tensor] | None = None,
) -> None:
    """Add every entry's low-rank branch to `y`, in place, for the slices of one fused site.

    Args:
        y: [T, sum(out_features)] output of the base linear, contiguous; float32 for logits.
        x: [T, in_features] its input, contiguous; may be `y`, which is then read as it was.
        slices: one pool per slice (q, k, v; gate, up; or one).
        entries: what acts where.
        weights: float32 [E] per slice, where they differ from `entries.weight`.
    """
    if gpu.takes(x):
        from turret_kernels.gpu import low_rank as kernels

        kernels.low_rank(y, x, slices, entries, weights or [entries.weight] * len(slices.pools))
        return
    table = slices.table
    if table is None or lib is None:
        low_rank_reference(y, x, slices, entries, weights)
        return
    for i in range(len(slices.pools)):
        table[i].weight = (entries.weight if weights is None else weights[i]).data_ptr()
    lib.turret_low_rank(
        y.data_ptr(),
        x.data_ptr(),
        table,
        len(table),
        entries.slot.data_ptr(),
        entries.row_start.data_ptr(),
        entries.row_count.data_ptr(),
        entries.count.data_ptr(),
        y.stride(0),
        x.shape[1],
        TILES,
        y.dtype == torch.float32,
    )


def low_rank_reference(
    y: Tensor,
    x: Tensor,
    slices: RankSlices,
    entries: Entries,
    weights: Sequence[Tensor] | None = None,
) -> None:
    """The obvious loop over row-major pools; hidden values stay in float32."""
    x = x.clone() if x.data_ptr() == y.data_ptr() else x
    columns = zip(slices.pools, slices.columns, weights or [None] * len(slices.pools), strict=True)
    for pool, column, weight in columns:
        for slot, w, rows in entries.each(weight):
            start, rank = int(pool.start[slot]), int(pool.count[slot])
            if rank == 0:
                continue
            a, b = pool.a[start : start + rank], pool.b[start : start + rank]
            hidden = x[rows].float() @ a.float().T
            if experts := int(pool.experts[slot]):
                hidden, b = _mix(hidden, experts), b[: rank - experts]
            delta = (hidden * w) @ b.float()
            out = y[rows, column : column + b.shape[1]]
            out.copy_(out.float() + delta)


def _mix(hidden: Tensor, experts: int) -> Tensor:
    """The hidden values [T, R] of a mixture, weighed by its gate: [T, R - experts]."""
    values, gate = hidden[:, :-experts], hidden[:, -experts:].softmax(-1)
    return (values.unflatten(1, (experts, -1)) * gate[..., None]).flatten(1)
