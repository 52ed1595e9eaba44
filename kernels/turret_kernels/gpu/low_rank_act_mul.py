"""The expand of gate and up inside `act(gate) * up`.

Bytes, by row of I values: 4 I of gate and up and 2 I of the product, as without adapters, and of B
4 I per rank of a tile's adapters. Apart, the expand reads and writes gate and up once more, 8 I.

A program has one tile and BLOCK_N columns of gate, and the same of up. All rows are in a tile
(`Entries.cover`): the base's take part as they do in `act_mul`. Sums and their order are those of
`low_rank`, and what it would round is rounded, so that a step's adapters need not all be fused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from turret_kernels.activation import NUMBER, Activation
from turret_kernels.entries import Entries
from turret_kernels.gpu.activation import activate
from turret_kernels.gpu.low_rank import branches, shrink, tile_rows

if TYPE_CHECKING:
    from turret_kernels.low_rank import RankSlices


@triton.jit(do_not_specialize=["tokens", "depth"])
def expand_act_mul_kernel(
    out_ptr,  # [tokens, I], contiguous
    gate_up_ptr,  # [tokens, 2 I], contiguous, gate first
    hidden_ptr,  # float32 [slices, depth, tokens, PLANES, max_rank]
    tiles_ptr,  # int32 [tiles, 4], of all rows
    slot_ptr,  # int32 [E]
    b_ptrs,  # of every slice, [R, I]
    start_ptrs,  # int32 [S]
    count_ptrs,  # int32 [S]
    weight_ptrs,  # float32 [E]
    tokens,
    depth,
    max_rank,
    I: tl.constexpr,  # noqa: E741
    GATE: tl.constexpr,  # its place among the slices, -1 for none
    UP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_N columns of the product for one tile."""
    tile = tiles_ptr + tl.program_id(1) * 4
    row = tl.load(tile).to(tl.int64)
    rows = tl.minimum(tl.load(tile + 1), tokens - row)
    if rows <= 0:
        return
    entry, entries = tl.load(tile + 2), tl.load(tile + 3)
    t, column = tl.arange(0, BLOCK_T), tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = (t < rows)[:, None]
    mask = is_row & (column < I)[None, :]
    of_gate = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    of_up = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    of_tile, sizes = (row, is_row, entry, entries), (tokens, depth, max_rank)
    pools = b_ptrs, start_ptrs, count_ptrs, weight_ptrs
    if GATE >= 0:
        of_gate, _ = branches(
            hidden_ptr, slot_ptr, pools, GATE, of_tile, column, I, sizes, PLANES, BLOCK_R
        )
    if UP >= 0:
        of_up, _ = branches(
            hidden_ptr, slot_ptr, pools, UP, of_tile, column, I, sizes, PLANES, BLOCK_R
        )
    values = gate_up_ptr + row * (2 * I) + t[:, None] * (2 * I) + column[None, :]
    gate = tl.load(values, mask=mask, other=0.0)
    up = tl.load(values + I, mask=mask, other=0.0)
    gate = (gate.to(tl.float32) + of_gate).to(gate.dtype)
    up = (up.to(tl.float32) + of_up).to(up.dtype)
    product = activate(gate, ACTIVATION).to(tl.float32) * up
    tl.store(out_ptr + row * I + t[:, None] * I + column[None, :], product.to(up.dtype), mask=mask)


def low_rank_act_mul(
    gate_up: Tensor,
    x: Tensor,
    slices: RankSlices,
    entries: Entries,
    weights: Sequence[Tensor],
    activation: Activation,
) -> Tensor:
    """As `turret_kernels.low_rank_act_mul.low_rank_act_mul`; `weights` are one per slice."""
    tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    hidden = shrink(x, slices, entries)
    block_t = tile_rows(tokens)
    decodes = block_t == 16
    tiles, pools, columns = entries.cover(block_t, tokens), slices.pools, list(slices.columns)
    out = torch.empty((tokens, inner), dtype=gate_up.dtype, device=gate_up.device)
    block_n = 128 if decodes else 64
    expand_act_mul_kernel[(triton.cdiv(inner, block_n), len(tiles))](
        out,
        gate_up,
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
        I=inner,
        GATE=columns.index(0) if 0 in columns else -1,
        UP=columns.index(inner) if inner in columns else -1,
        ACTIVATION=NUMBER[activation],
        PLANES=hidden.planes,
        BLOCK_T=block_t,
        BLOCK_R=16,
        BLOCK_N=block_n,
        num_warps=4 if decodes else 8,
        enable_fp_fusion=True,
    )
    return out
