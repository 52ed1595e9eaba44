"""Low-rank branches of two bits a value: as `low_rank`, with factors unpacked in registers.

Bytes: each rank row of a tile's adapters once, K / 4 in the shrink and N / 4 in the expand, an
eighth of bfloat16's. Work, tiles and order of sums are those of `low_rank`; see there.

Unpacking is a shift and a mask by value (`turret_kernels.ternary_low_rank`); the product is then of
the served dtype, on tensor cores, and exact in its factors: they are -2, 0 and 2, and a quarter of
the scale makes up for it.

Decode: a program of the shrink reads 4 kB of A at once, 128 words of 16 ranks, which are 1024
values of K; eight steps then go over the eight parts of x that they meet, in flight like A's tiles
in `low_rank`. A program of the expand has 32 words of every rank, which are eight pieces of 32
columns each: 256, as there.

Expected of an H100 at Llama-3-8B's gate and up, 64 rows of 64 adapters of rank 16: 9.4 MB in the
place of 75.5 MB, 3 us. But a value takes 2.5 instructions to unpack (shift, mask, half a permute),
and an SM has 64 lanes for them: 37.7 M values are 6.4 us, which decide. With both launches 14 us,
where `low_rank` takes 37. With one adapter launches decide, there as here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from turret_kernels.entries import Entries
from turret_kernels.gpu.low_rank import PROGRAMS, pick, sum_planes, tile_rows

if TYPE_CHECKING:
    from turret_kernels.ternary_low_rank import TernarySlices


@triton.jit
def unpack(words, shift, dtype: tl.constexpr):
    """The values whose bits end up highest, doubled."""
    codes = ((words.to(tl.uint16, bitcast=True) << shift) & 0xC000).to(tl.uint16)
    if dtype == tl.bfloat16:
        return codes.to(tl.bfloat16, bitcast=True)
    return codes.to(tl.float16, bitcast=True).to(dtype)


@triton.jit(do_not_specialize=["tokens", "rank_programs"])
def ternary_shrink_kernel(
    hidden_ptr,  # float32 [slices, depth, tokens, planes, max_rank]
    x_ptr,  # [tokens, K], contiguous
    tiles_ptr,  # int32 [tiles, 4]
    slot_ptr,  # int32 [E]
    a_ptrs,  # of every slice, int16 [R, WORDS]
    scale_ptrs,  # float32 [R]
    start_ptrs,  # int32 [S]
    count_ptrs,  # int32 [S]
    tokens,
    max_rank,
    rank_programs,
    K: tl.constexpr,
    WORDS: tl.constexpr,
    CHUNK: tl.constexpr,  # words
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """A chunk of words for one slice and one entry of a tile; every `rank_programs`-th block."""
    PLANES: tl.constexpr = (WORDS + CHUNK - 1) // CHUNK
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
    t, w = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_W)
    x_tile = x_ptr + row * K + plane * CHUNK + (t[:, None] * K + w[None, :])
    a_chunk = pick(a_ptrs, piece) + plane * CHUNK + start * WORDS
    place = (piece * tl.num_programs(2) + i).to(tl.int64) * tokens + row
    hidden = hidden_ptr + place * PLANES * max_rank + plane * max_rank
    for first in range(block * BLOCK_R, count, rank_programs * BLOCK_R):
        rank = first + tl.arange(0, BLOCK_R)
        a_tile = a_chunk + (rank[:, None] * WORDS + w[None, :])
        total = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
        for step in tl.range(0, CHUNK, BLOCK_W, num_stages=1):
            x_mask, a_mask = (t < rows)[:, None], (rank < count)[:, None]
            if WORDS % CHUNK != 0:  # the last chunk is shorter
                inside = (w < WORDS - plane * CHUNK - step)[None, :]
                x_mask, a_mask = x_mask & inside, a_mask & inside
            words = tl.load(a_tile + step, mask=a_mask, other=0)
            for value in range(8):
                mask = x_mask
                if K % (8 * WORDS) != 0:  # the last values are none
                    mask &= (w < K - value * WORDS - plane * CHUNK - step)[None, :]
                x = tl.load(x_tile + step + value * WORDS, mask=mask, other=0.0)
                a = unpack(words, 2 * value, x.dtype)
                total = tl.dot(x, tl.trans(a), total, input_precision="ieee")
        # Here, where a rank is met once; a quarter, since both factors are doubled.
        scale = tl.load(pick(scale_ptrs, piece) + start + rank, mask=rank < count, other=0.0) / 4
        out = hidden + t[:, None] * (PLANES * max_rank) + rank[None, :]
        tl.store(out, total * scale[None, :], mask=(t < rows)[:, None])


@triton.jit(do_not_specialize=["tokens", "depth"])
def ternary_expand_kernel(
    y_ptr,  # [tokens, WIDTH], contiguous, updated in place
    hidden_ptr,  # float32 [slices, depth, tokens, PLANES, max_rank]
    tiles_ptr,  # int32 [tiles, 4]
    slot_ptr,  # int32 [E]
    b_ptrs,  # of every slice, int16 [R, words]
    start_ptrs,  # int32 [S]
    count_ptrs,  # int32 [S]
    weight_ptrs,  # float32 [E]
    tokens,
    depth,
    max_rank,
    WIDTH: tl.constexpr,
    NS: tl.constexpr,  # of every slice, N
    WORDS: tl.constexpr,  # its words
    COLUMNS: tl.constexpr,  # its first column of y
    DTYPE: tl.constexpr,  # of the product
    PLANES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The columns of BLOCK_W words of one slice for one tile."""
    tile = tiles_ptr + tl.program_id(1) * 4
    row, rows = tl.load(tile).to(tl.int64), tl.load(tile + 1)
    entry, entries = tl.load(tile + 2), tl.load(tile + 3)
    if rows == 0:
        return
    piece, block = 0, tl.program_id(0)
    for i in tl.static_range(len(NS) - 1):
        if piece == i and block >= (WORDS[i] + BLOCK_W - 1) // BLOCK_W:
            piece, block = i + 1, block - (WORDS[i] + BLOCK_W - 1) // BLOCK_W
    start_ptr, count_ptr = pick(start_ptrs, piece), pick(count_ptrs, piece)
    weight_ptr = pick(weight_ptrs, piece)
    n, words = pick(NS, piece), pick(WORDS, piece)
    t, word = tl.arange(0, BLOCK_T), block * BLOCK_W + tl.arange(0, BLOCK_W)
    is_row, is_word = (t < rows)[:, None], (word < words)[None, :]
    shift = (tl.arange(0, 8) * 2)[None, :, None]
    b_words = pick(b_ptrs, piece) + word[None, :]
    total, present = tl.zeros((BLOCK_T, 8 * BLOCK_W), dtype=tl.float32), 0
    for i in range(entries):
        slot = tl.load(slot_ptr + entry + i)
        count = tl.load(count_ptr + slot)
        present += count
        if count > 0:
            start = tl.load(start_ptr + slot).to(tl.int64)
            weight = tl.load(weight_ptr + entry + i)
            place = (piece * depth + i).to(tl.int64) * tokens + row
            hidden = hidden_ptr + place * PLANES * max_rank + t[:, None] * (PLANES * max_rank)
            for first in tl.range(0, count, BLOCK_R, num_stages=1):
                rank = first + tl.arange(0, BLOCK_R)
                h = sum_planes(hidden + rank[None, :], max_rank, is_row, PLANES)
                mask = (rank < count)[:, None] & is_word
                packed = tl.load(b_words + (start + rank)[:, None] * words, mask=mask, other=0)
                b = unpack(packed[:, None, :], shift, DTYPE).reshape(BLOCK_R, 8 * BLOCK_W)
                total = tl.dot((h * weight).to(DTYPE), b, total, input_precision="ieee")
    if present == 0:
        return
    # Read here, not sooner: its registers would cost a processor one of its programs.
    value = tl.arange(0, 8 * BLOCK_W)
    word = block * BLOCK_W + value % BLOCK_W
    column = value // BLOCK_W * words + word
    mask = is_row & ((word < words) & (column < n))[None, :]
    y_tile = y_ptr + row * WIDTH + pick(COLUMNS, piece) + t[:, None] * WIDTH + column[None, :]
    y = tl.load(y_tile, mask=mask, other=0.0)
    tl.store(y_tile, (y.to(tl.float32) + total).to(y.dtype), mask=mask)


def ternary_low_rank(
    y: Tensor, x: Tensor, slices: TernarySlices, entries: Entries, weights: Sequence[Tensor]
) -> None:
    """As `turret_kernels.ternary_low_rank.ternary_low_rank`; `weights` are one per slice."""
    tokens, k = x.shape
    block_t = tile_rows(tokens)
    decodes = block_t == 16
    block_r, block_w, most_planes = (16, 128, 8) if decodes else (32, 64, 4)
    # Of a graph's table, which has room for any step, what tiles these rows can make.
    tiles, pools = entries.tiles(block_t)[:tokens], slices.pools
    words = pools[0].a.shape[1]
    planes = min(most_planes, triton.cdiv(words, 128))
    chunk = triton.cdiv(words, planes * block_w) * block_w
    planes = triton.cdiv(words, chunk)
    max_rank = triton.cdiv(max(pool.max_rank for pool in pools), 32) * 32
    depth, count = entries.depth, len(pools)
    hidden = torch.empty((count, depth, tokens, planes, max_rank), device=x.device)
    starts, counts = tuple(p.start for p in pools), tuple(p.count for p in pools)

    programs = count * planes
    others = programs * len(tiles) * depth
    rank_programs = min(max_rank // block_r, triton.cdiv(PROGRAMS, others))
    ternary_shrink_kernel[(programs * rank_programs, len(tiles), depth)](
        hidden,
        x,
        tiles,
        entries.slot,
        tuple(p.a for p in pools),
        tuple(p.scale for p in pools),
        starts,
        counts,
        tokens,
        max_rank,
        rank_programs,
        K=k,
        WORDS=words,
        CHUNK=chunk,
        BLOCK_T=block_t,
        BLOCK_R=block_r,
        BLOCK_W=block_w,
        num_warps=4 if decodes else 8,
        num_stages=4,
        enable_fp_fusion=True,
    )
    block_w = 32 if decodes and y.itemsize == 2 else 16
    of_slices = tuple(p.b.shape[1] for p in pools)
    ternary_expand_kernel[(sum(triton.cdiv(w, block_w) for w in of_slices), len(tiles))](
        y,
        hidden,
        tiles,
        entries.slot,
        tuple(p.b for p in pools),
        starts,
        counts,
        tuple(weights),
        tokens,
        depth,
        max_rank,
        WIDTH=y.shape[1],
        NS=tuple(p.out_features for p in pools),
        WORDS=of_slices,
        COLUMNS=tuple(slices.columns),
        DTYPE=_TRITON_DTYPES[x.dtype],
        PLANES=planes,
        BLOCK_T=block_t,
        BLOCK_R=16,
        BLOCK_W=block_w,
        num_warps=4 if decodes else 8,
        enable_fp_fusion=True,
    )


_TRITON_DTYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
}
