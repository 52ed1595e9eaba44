"""Block-diagonal changes of a linear's input by slot, in a copy that becomes the linear's input.

Bytes: 4 N per row of N 16-bit values, read and written; of every tile and entry its blocks, 4 b N
in float32: at blocks of 32 as much as 64 ranks of a low-rank branch's A, so with many adapters they
decide. The rest are launches and a chain from tile to slot to table to the first block, some 2 us.

A program takes 32 columns of a tile of rows (`Entries.tiles`). Their blocks are read as one matrix
[inputs, 32] with zeros (masked, so not read) beside the diagonal: blocks of any size, which need
not divide 32, are the same loop, and those that do one step of it. A block of float32 is split
into two 16-bit matrices for the tensor cores: 16 bits of its 24, where outputs have 8 or 11.

Other programs copy the rows that no entry has. So every row is written once.

Expected of an H100 at 4096 inputs: eight rows of as many adapters in 4.4 us, 64 in 21, 60% of the
bandwidth, since a program has 4 kB of blocks to read behind that chain.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turret_kernels.entries import Entries
from turret_kernels.gpu.low_rank import tile_rows
from turret_kernels.rotation import BlockTable

_BLOCK = 32


@triton.jit(do_not_specialize=["tokens", "tiles"])
def rotate_kernel(
    out_ptr,  # [tokens, N], contiguous
    x_ptr,  # [tokens, N], contiguous
    pointers_ptr,  # int64 [S, 3]: address of the blocks, their size, how far apart they are
    tiles_ptr,  # int32 [tiles, 4]
    of_rows_ptr,  # int32 [tokens, 2]
    slot_ptr,  # int32 [E]
    weight_ptr,  # float32 [E]
    tokens,
    tiles,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK columns of one tile, or of ROWS rows of which the free ones are copied."""
    t = tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(0) >= tiles:
        row = (tl.program_id(0) - tiles) * ROWS + t
        acting = tl.load(of_rows_ptr + row * 2 + 1, mask=row < tokens, other=1)
        place = row.to(tl.int64)[:, None] * N + column[None, :]
        mask = (acting == 0)[:, None] & (column < N)[None, :]
        tl.store(out_ptr + place, tl.load(x_ptr + place, mask=mask, other=0.0), mask=mask)
        return
    tile = tiles_ptr + tl.program_id(0) * 4
    rows = tl.load(tile + 1)
    if rows == 0:
        return
    first, entries = tl.load(tile + 2), tl.load(tile + 3)
    start = tl.load(tile).to(tl.int64) * N
    x_ptr += start
    total, touched = tl.zeros((ROWS, BLOCK), tl.float32), 0
    for entry in range(first, first + entries):
        address = pointers_ptr + tl.load(slot_ptr + entry).to(tl.int64) * 3
        size = tl.load(address + 1).to(tl.int32)
        if size > 0:
            touched = 1
            blocks_ptr = tl.multiple_of(tl.load(address).to(tl.pointer_type(tl.float32)), 16)
            stride = tl.load(address + 2).to(tl.int32)
            if size % 4 == 0:  # nearly always: 4 numbers are 16 bytes
                size, stride = size // 4 * 4, stride // 4 * 4
                change = _product(x_ptr, blocks_ptr, size, stride, rows, N, ROWS, BLOCK, BLOCK)
            else:
                change = _product(x_ptr, blocks_ptr, size, stride, rows, N, ROWS, BLOCK, 16)
            total += tl.load(weight_ptr + entry) * change
    place = t[:, None] * N + column[None, :]
    mask = (t < rows)[:, None] & (column < N)[None, :]
    y = tl.load(x_ptr + place, mask=mask, other=0.0)
    if touched != 0:
        y = (y.to(tl.float32) + total).to(y.dtype)
    tl.store(out_ptr + start + place, y, mask=mask)


@triton.jit
def _product(
    x_ptr,  # [rows, N], of the tile
    blocks_ptr,
    size,
    stride,
    rows,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Of a tile's rows and the blocks that end in the program's columns: float32 [ROWS, BLOCK]."""
    t, k = tl.arange(0, ROWS), tl.arange(0, STEP)
    begin = tl.program_id(1) * BLOCK
    column = begin + tl.arange(0, BLOCK)
    block = column // size
    corner = block * size  # the first row and column of a column's block
    places = (
        block * stride + column - corner
    )  # of their first rows; 8 GB would be more than 31 bits
    low = begin // size * size // STEP * STEP
    high = tl.minimum(N, ((begin + BLOCK - 1) // size + 1) * size)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in tl.range(low, high, STEP, num_stages=3 if STEP == BLOCK else 1):
        row = step + k
        x = tl.load(
            x_ptr + t[:, None] * N + row[None, :],
            mask=(t < rows)[:, None] & (row < N)[None, :],
            other=0.0,
        )
        inside = row[:, None] - corner[None, :]
        d = tl.load(
            blocks_ptr + inside * size + places[None, :],
            mask=(inside >= 0) & (inside < size) & (row < N)[:, None],
            other=0.0,
        )
        if x.dtype == tl.float32:
            total = tl.dot(x, d, total, input_precision="ieee")
        else:
            rounded = d.to(x.dtype)
            rest = (d - rounded.to(tl.float32)).to(x.dtype)
            total = tl.dot(x, rest, tl.dot(x, rounded, total))
    return total


def rotate(x: Tensor, table: BlockTable, entries: Entries, weight: Tensor) -> Tensor:
    """Arguments as in `turret_kernels.rotation.rotate`; `weight` is float32 [E]."""
    tokens, n = x.shape
    out = torch.empty((tokens, n), dtype=x.dtype, device=x.device)
    rows = tile_rows(tokens)
    # Of a graph's table, which has room for any step, what tiles these rows can make.
    tiles = entries.tiles(rows)[:tokens]
    rotate_kernel[(len(tiles) + triton.cdiv(tokens, rows), triton.cdiv(n, _BLOCK))](
        out,
        x,
        table.pointers,
        tiles,
        entries.of_rows(tokens),
        entries.slot,
        weight,
        tokens,
        len(tiles),
        N=n,
        ROWS=rows,
        BLOCK=_BLOCK,
        num_warps=2 if rows == 16 else 4,
        enable_fp_fusion=True,
    )
    return out
