"""The embedding's low-rank branches, in one kernel.

Bytes: a rank row of B (2 N of N 16-bit values) per tile and rank, y read and written, and of A one
sector of 32 bytes per token and rank: the column of a token lies across the rows. That is little
(16 kB for 32 tokens at rank 16), and A can stay as it is stored and be written row by row.

Tiles as in `low_rank`; a program takes 128 columns of one, and gathers its hidden values, which
other programs of the tile gather too, from L2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from turret_kernels.entries import Entries
from turret_kernels.gpu.low_rank import tile_rows
from turret_kernels.low_rank import RankPool

_BLOCK_N = 128


@triton.jit
def embed_low_rank_kernel(
    y_ptr,  # [tokens, N], contiguous, updated in place
    ids_ptr,  # int64 [tokens]
    tiles_ptr,  # int32 [tiles, 4]
    slot_ptr,  # int32 [E]
    weight_ptr,  # float32 [E]
    a_ptr,  # [R, vocab]
    b_ptr,  # [R, N]
    start_ptr,  # int32 [S]
    count_ptr,  # int32 [S]
    vocab,
    N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_N columns of one tile."""
    tile = tiles_ptr + tl.program_id(1) * 4
    row, rows = tl.load(tile).to(tl.int64), tl.load(tile + 1)
    entry, entries = tl.load(tile + 2), tl.load(tile + 3)
    if rows == 0:
        return
    t, column = tl.arange(0, BLOCK_T), tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_column = (t < rows)[:, None], (column < N)[None, :]
    total, present = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32), 0
    ids = tl.load(ids_ptr + row + t, mask=t < rows, other=0)
    for i in range(entries):
        slot = tl.load(slot_ptr + entry + i)
        count = tl.load(count_ptr + slot)
        present += count
        if count > 0:
            start = tl.load(start_ptr + slot).to(tl.int64)
            weight = tl.load(weight_ptr + entry + i)
            for first in tl.range(0, count, BLOCK_R, num_stages=1):
                rank = first + tl.arange(0, BLOCK_R)
                column_of_a = a_ptr + (start + rank)[None, :] * vocab + ids[:, None]
                h = tl.load(column_of_a, mask=is_row & (rank < count)[None, :], other=0.0)
                b_rows = b_ptr + (start + rank)[:, None] * N + column[None, :]
                b = tl.load(b_rows, mask=(rank < count)[:, None] & is_column, other=0.0)
                h = (h.to(tl.float32) * weight).to(b.dtype)
                total = tl.dot(h, b, total, input_precision="ieee")
    if present == 0:
        return
    y_tile = y_ptr + row * N + t[:, None] * N + column[None, :]
    y = tl.load(y_tile, mask=is_row & is_column, other=0.0)
    tl.store(y_tile, (y.to(tl.float32) + total).to(y.dtype), mask=is_row & is_column)


def embed_low_rank(
    y: Tensor, token_ids: Tensor, pool: RankPool, entries: Entries, weight: Tensor
) -> None:
    """As `turret_kernels.embed_low_rank.embed_low_rank`."""
    tokens, n = y.shape
    block_t = tile_rows(tokens)
    tiles = entries.tiles(block_t)[:tokens]
    embed_low_rank_kernel[(triton.cdiv(n, _BLOCK_N), len(tiles))](
        y,
        token_ids,
        tiles,
        entries.slot,
        weight,
        pool.a,
        pool.b,
        pool.start,
        pool.count,
        pool.a.shape[1],
        N=n,
        BLOCK_T=block_t,
        BLOCK_R=16,
        BLOCK_N=_BLOCK_N,
        num_warps=4 if block_t == 16 else 8,
        enable_fp_fusion=True,
    )
