"""Low-rank branches in two kernels: shrink (`x A^T`) and expand (`y += h B`).

Bytes: each rank row of a tile's adapters once, 2 K in the shrink and 2 N in the expand; x once per
slice; y read and written where an adapter acts. Ranks are the adapters' own: what lies beyond is
masked, and a mask by rows costs no wide access. Where a slot has no ranks its count is read, and
nothing else.

A program owns a tile of rows (`Entries.tiles`) and applies its entries in order, so stacked
adapters add up without atomics, in float32. K is cut by its length alone; the expand adds the
partial sums (planes) in order. So what a row gets does not depend on its batch, but for whether
that is a decode or a prefill.

Decode has tiles of 16 rows, the least that tensor cores multiply, and little but A and B to read.
The shrink gives slices, chunks of K and blocks of ranks to different programs, each with six steps
of 4 kB of A on their way; the expand gives 256 columns to each. Prefill has tiles of 64 rows.

Expected of an H100 (3 TB/s) at Llama-3-8B's gate and up, 32 rows of 8 adapters of rank 16: the
shrink reads 2.1 MB and the expand 7.3 MB, 0.7 and 2.4 us; with the launch, and the chain from tile
to slot to count before the first row, 3 and 5 us. With 64 adapters bytes decide: 85% of the floor
in the shrink; 60% in the expand, where a tile of one row issues what 16 rows would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from turret_kernels.entries import Entries

if TYPE_CHECKING:
    from turret_kernels.low_rank import RankSlices

# What a launch should have if there is work for as many: two for every processor.
PROGRAMS = 264


@triton.jit
def pick(values, index):
    """`values[index]` of a tuple; what is known of every one (16 divides it) stays known."""
    found = values[0]
    for i in tl.static_range(1, len(values)):
        if index == i:
            found = values[i]
    return found


@triton.jit(do_not_specialize=["tokens", "rank_programs"])
def shrink_kernel(
    hidden_ptr,  # float32 [slices, depth, tokens, planes, max_rank]
    x_ptr,  # [tokens, K], contiguous
    tiles_ptr,  # int32 [tiles, 4]
    slot_ptr,  # int32 [E]
    a_ptrs,  # of every slice, [R, K]
    start_ptrs,  # int32 [S]
    count_ptrs,  # int32 [S]
    tokens,
    max_rank,
    rank_programs,
    K: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A chunk of K for one slice and one entry of a tile; every `rank_programs`-th rank block."""
    PLANES: tl.constexpr = (K + CHUNK - 1) // CHUNK
    tile, i = tiles_ptr + tl.program_id(1) * 4, tl.program_id(2)
    rows = tl.load(tile + 1)
    if rows == 0 or i >= tl.load(tile + 3):
        return
    part = tl.program_id(0)
    piece, part = part % len(a_ptrs), part // len(a_ptrs)
    block, plane = part % rank_programs, part // rank_programs
    slot = tl.load(slot_ptr + tl.load(tile + 2) + i)
    count = tl.load(pick(count_ptrs, piece) + slot)
    if block * BLOCK_R >= count:
        return
    row, start = tl.load(tile).to(tl.int64), tl.load(pick(start_ptrs, piece) + slot).to(tl.int64)
    t, k = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    x_tile = x_ptr + plane * CHUNK + (row + t)[:, None] * K + k[None, :]
    a_chunk = pick(a_ptrs, piece) + plane * CHUNK + start * K
    place = (piece * tl.num_programs(2) + i).to(tl.int64) * tokens + row
    hidden = hidden_ptr + place * PLANES * max_rank + plane * max_rank
    for first in range(block * BLOCK_R, count, rank_programs * BLOCK_R):
        rank = first + tl.arange(0, BLOCK_R)
        a_tile = a_chunk + rank[:, None] * K + k[None, :]
        total = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
        for step in range(0, CHUNK, BLOCK_K):
            x_mask, a_mask = (t < rows)[:, None], (rank < count)[:, None]
            if K % CHUNK != 0:  # the last chunk is shorter
                inside = (k < K - plane * CHUNK - step)[None, :]
                x_mask, a_mask = x_mask & inside, a_mask & inside
            x = tl.load(x_tile + step, mask=x_mask, other=0.0)
            a = tl.load(a_tile + step, mask=a_mask, other=0.0)
            total = tl.dot(x, tl.trans(a), total, input_precision="ieee")
        out = hidden + t[:, None] * (PLANES * max_rank) + rank[None, :]
        tl.store(out, total, mask=(t < rows)[:, None])


@triton.jit(do_not_specialize=["tokens", "depth"])
def mix_kernel(
    hidden_ptr,  # float32 [slices, depth, tokens, PLANES, max_rank]; the result is in plane 0
    tiles_ptr,  # int32 [tiles, 4]
    slot_ptr,  # int32 [E]
    count_ptrs,  # of every slice, int32 [S]
    experts_ptrs,  # int32 [S]
    tokens,
    depth,
    max_rank,
    PLANES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Weighs the hidden values of a tile's mixtures by their gates, for one slice.

    The gates' own stay: they meet rows of B that are zero.
    """
    tile = tiles_ptr + tl.program_id(1) * 4
    row, rows = tl.load(tile).to(tl.int64), tl.load(tile + 1)
    entry, entries = tl.load(tile + 2), tl.load(tile + 3)
    piece = tl.program_id(0)
    count_ptr, experts_ptr = pick(count_ptrs, piece), pick(experts_ptrs, piece)
    t, r = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_R)
    is_row = (t < rows)[:, None]
    for i in range(entries):
        slot = tl.load(slot_ptr + entry + i)
        experts = tl.load(experts_ptr + slot)
        if experts > 0:
            ranks = tl.load(count_ptr + slot) - experts
            group = ranks // experts
            place = (piece * depth + i).to(tl.int64) * tokens + row
            hidden = hidden_ptr + (place + t)[:, None] * PLANES * max_rank
            top = tl.full((BLOCK_T,), float("-inf"), dtype=tl.float32)
            total = tl.zeros((BLOCK_T,), dtype=tl.float32)
            for first in range(0, experts, BLOCK_R):
                is_gate = (first + r < experts)[None, :]
                gate = hidden + (ranks + first + r)[None, :]
                logit = sum_planes(gate, max_rank, is_row & is_gate, PLANES)
                logit = tl.where(is_gate, logit, float("-inf"))
                higher = tl.maximum(top, tl.max(logit, axis=1))
                total = total * tl.exp(top - higher)
                total += tl.sum(tl.exp(logit - higher[:, None]), axis=1)
                top = higher
            for first in range(0, ranks, BLOCK_R):
                rank = (first + r)[None, :]
                mask = is_row & (rank < ranks)
                logit = sum_planes(hidden + ranks + rank // group, max_rank, mask, PLANES)
                value = sum_planes(hidden + rank, max_rank, mask, PLANES)
                value *= tl.exp(logit - top[:, None]) / total[:, None]
                tl.store(hidden + rank, value, mask=mask)
                for plane in tl.static_range(1, PLANES):
                    tl.store(hidden + plane * max_rank + rank, tl.zeros_like(value), mask=mask)


@triton.jit
def branches(
    hidden_ptr,
    slot_ptr,
    pools,  # of every slice: b, start, count, weight
    piece,  # which slice
    tile,  # first row, [BLOCK_T, 1] which rows are its own, first entry, entries
    column,  # [BLOCK_N], of the slice
    n,  # columns that the slice has
    sizes,  # tokens, depth, max_rank
    PLANES: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """What a tile's entries add to columns of a slice, and how many ranks they have in it."""
    b_ptrs, start_ptrs, count_ptrs, weight_ptrs = pools
    row, is_row, entry, entries = tile
    tokens, depth, max_rank = sizes
    start_ptr, count_ptr = pick(start_ptrs, piece), pick(count_ptrs, piece)
    weight_ptr = pick(weight_ptrs, piece)
    BLOCK_T: tl.constexpr = is_row.shape[0]
    BLOCK_N: tl.constexpr = column.shape[0]
    t, is_column = tl.arange(0, BLOCK_T), (column < n)[None, :]
    b_columns = pick(b_ptrs, piece) + column[None, :]
    total, present = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32), 0
    for i in range(entries):
        slot = tl.load(slot_ptr + entry + i)
        count = tl.load(count_ptr + slot)
        present += count
        if count > 0:
            start = tl.load(start_ptr + slot).to(tl.int64)
            weight = tl.load(weight_ptr + entry + i)
            place = (piece * depth + i).to(tl.int64) * tokens + row
            hidden = hidden_ptr + place * PLANES * max_rank + t[:, None] * (PLANES * max_rank)
            # One stage: most adapters are a block or two, and more would only take registers.
            for first in tl.range(0, count, BLOCK_R, num_stages=1):
                rank = first + tl.arange(0, BLOCK_R)
                # A block's values are all written, and a mask by ranks would make reads narrow.
                h = sum_planes(hidden + rank[None, :], max_rank, is_row, PLANES)
                mask = (rank < count)[:, None] & is_column
                b = tl.load(b_columns + start * n + rank[:, None] * n, mask=mask, other=0.0)
                total = tl.dot((h * weight).to(b.dtype), b, total, input_precision="ieee")
    return total, present


@triton.jit(do_not_specialize=["tokens", "depth"])
def expand_kernel(
    y_ptr,  # [tokens, WIDTH], contiguous, updated in place
    hidden_ptr,  # float32 [slices, depth, tokens, PLANES, max_rank]
    tiles_ptr,  # int32 [tiles, 4]
    slot_ptr,  # int32 [E]
    b_ptrs,  # of every slice, [R, N]
    start_ptrs,  # int32 [S]
    count_ptrs,  # int32 [S]
    weight_ptrs,  # float32 [E]
    tokens,
    depth,
    max_rank,
    WIDTH: tl.constexpr,
    NS: tl.constexpr,  # of every slice, N
    COLUMNS: tl.constexpr,  # its first column of y
    PLANES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_N columns of one slice for one tile."""
    tile = tiles_ptr + tl.program_id(1) * 4
    row, rows = tl.load(tile).to(tl.int64), tl.load(tile + 1)
    entry, entries = tl.load(tile + 2), tl.load(tile + 3)
    if rows == 0:
        return
    piece, block = 0, tl.program_id(0)
    for i in tl.static_range(len(NS) - 1):
        if piece == i and block >= (NS[i] + BLOCK_N - 1) // BLOCK_N:
            piece, block = i + 1, block - (NS[i] + BLOCK_N - 1) // BLOCK_N
    n = pick(NS, piece)
    t, column = tl.arange(0, BLOCK_T), block * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_column = (t < rows)[:, None], (column < n)[None, :]
    of_tile, sizes = (row, is_row, entry, entries), (tokens, depth, max_rank)
    pools = b_ptrs, start_ptrs, count_ptrs, weight_ptrs
    total, present = branches(
        hidden_ptr, slot_ptr, pools, piece, of_tile, column, n, sizes, PLANES, BLOCK_R
    )
    if present == 0:
        return
    # Read here, not sooner: its registers would cost a processor one of its programs.
    y_tile = y_ptr + row * WIDTH + pick(COLUMNS, piece) + t[:, None] * WIDTH + column[None, :]
    y = tl.load(y_tile, mask=is_row & is_column, other=0.0)
    tl.store(y_tile, (y.to(tl.float32) + total).to(y.dtype), mask=is_row & is_column)


@triton.jit
def sum_planes(ptr, stride, mask, PLANES: tl.constexpr):
    """The hidden values at `ptr`: partial sums, added in order."""
    total = tl.load(ptr, mask=mask, other=0.0)
    for plane in tl.static_range(1, PLANES):
        total += tl.load(ptr + plane * stride, mask=mask, other=0.0)
    return total


def tile_rows(tokens: int) -> int:
    """Rows of a tile in a step of so many: a decode's, or a prefill's."""
    return 16 if tokens <= 256 else 64


@dataclass(frozen=True, slots=True)
class Hidden:
    """What the shrink leaves to an expand.

    Attributes:
        values: float32 [slices, depth, tokens, planes, max_rank]; where a slot has ranks.
        depth: most entries on one row.
        planes: partial sums, to be added in order.
        max_rank: room for a slot's ranks.
    """

    values: Tensor
    depth: int
    planes: int
    max_rank: int


def shrink(x: Tensor, slices: RankSlices, entries: Entries) -> Hidden:
    """The hidden values of all entries; those of mixtures weighed by their gates."""
    tokens, k = x.shape
    block_t = tile_rows(tokens)
    decodes = block_t == 16
    block_r, most_planes = (16, 8) if decodes else (32, 4)
    # Of a graph's table, which has room for any step, what tiles these rows can make.
    tiles, pools = entries.tiles(block_t)[:tokens], slices.pools
    planes = min(most_planes, triton.cdiv(k, 1024))
    chunk = triton.cdiv(k, planes * 128) * 128
    planes = triton.cdiv(k, chunk)
    max_rank = triton.cdiv(max(pool.max_rank for pool in pools), 32) * 32
    depth, count = entries.depth, len(pools)
    hidden = torch.empty((count, depth, tokens, planes, max_rank), device=x.device)
    starts, counts = tuple(p.start for p in pools), tuple(p.count for p in pools)

    programs = count * planes
    others = programs * len(tiles) * depth
    rank_programs = min(max_rank // block_r, triton.cdiv(PROGRAMS, others))
    shrink_kernel[(programs * rank_programs, len(tiles), depth)](
        hidden,
        x,
        tiles,
        entries.slot,
        tuple(p.a for p in pools),
        starts,
        counts,
        tokens,
        max_rank,
        rank_programs,
        K=k,
        CHUNK=chunk,
        BLOCK_T=block_t,
        BLOCK_R=block_r,
        BLOCK_K=128 if decodes else 64,
        num_warps=4,
        num_stages=7 if decodes else 5,
        enable_fp_fusion=True,
    )
    if any(p.has_mixtures for p in pools):
        mix_kernel[(count, len(tiles))](
            hidden,
            tiles,
            entries.slot,
            counts,
            tuple(p.experts for p in pools),
            tokens,
            depth,
            max_rank,
            PLANES=planes,
            BLOCK_T=block_t,
            BLOCK_R=32,
            num_warps=4 if decodes else 8,
            enable_fp_fusion=True,
        )
    return Hidden(hidden, depth, planes, max_rank)


def low_rank(
    y: Tensor, x: Tensor, slices: RankSlices, entries: Entries, weights: Sequence[Tensor]
) -> None:
    """As `turret_kernels.low_rank.low_rank`; `weights` are float32 [E], one per slice."""
    tokens, hidden = x.shape[0], shrink(x, slices, entries)
    block_t = tile_rows(tokens)
    decodes = block_t == 16
    tiles, pools = entries.tiles(block_t)[:tokens], slices.pools
    widths = tuple(p.b.shape[1] for p in pools)
    block_n = 256 if decodes and y.itemsize == 2 else 128
    expand_kernel[(sum(triton.cdiv(n, block_n) for n in widths), len(tiles))](
        y,
        hidden.values,
        tiles,
        entries.slot,
        tuple(p.b for p in pools),
        tuple(p.start for p in pools),
        tuple(p.count for p in pools),
        tuple(weights),
        tokens,
        hidden.depth,
        hidden.max_rank,
        WIDTH=y.shape[1],
        NS=widths,
        COLUMNS=tuple(slices.columns),
        PLANES=hidden.planes,
        BLOCK_T=block_t,
        BLOCK_R=16,
        BLOCK_N=block_n,
        num_warps=4 if decodes else 8,
        enable_fp_fusion=True,
    )
