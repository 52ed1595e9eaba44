"""Scales, paired rotations and offsets by slot, in place.

Bytes per row of N 16-bit values: 4 N of `y`, read and written once however many entries act, and
4 N of the float32 table per slot (8 N with pairs), which the rows of a tile share. A tile is four
rows, since most rows of a decode step are of different adapters; a program has 512 columns of it,
16 values per thread. Below some 64 rows the launch costs more than the bytes; above, 85% of the
bandwidth are expected, as for any copy.

A program owns both members of its pairs, so that nobody reads what another has already written.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from turret_kernels.elementwise import OffsetTable, ScaleTable
from turret_kernels.entries import Entries

_ROWS = 4
_BLOCK = 512


@triton.jit
def add_offset_kernel(
    y_ptr,  # [T, M]
    stride,
    first_column,
    vectors_ptr,  # float32 [S, N]
    present_ptr,  # uint8 [S]
    tiles_ptr,  # int32 [tiles, 4]
    slot_ptr,  # int32 [E]
    weight_ptr,  # float32 [E]
    N: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK columns of one tile per program."""
    tile = tiles_ptr + tl.program_id(0) * 4
    start, rows = tl.load(tile).to(tl.int64), tl.load(tile + 1)
    first, entries = tl.load(tile + 2), tl.load(tile + 3)
    row = tl.arange(0, ROWS)[:, None]
    column = tl.broadcast_to(
        (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :], (ROWS, BLOCK)
    )
    mask = (row < rows) & (column < N)
    place = y_ptr + (start + row) * stride + first_column + column
    y = tl.load(place, mask=mask, other=0.0)
    touched = 0
    for entry in range(first, first + entries):
        slot = tl.load(slot_ptr + entry).to(tl.int64)
        if tl.load(present_ptr + slot) != 0:
            vector = tl.load(vectors_ptr + slot * N + column, mask=mask, other=0.0)
            y = (y.to(tl.float32) + tl.load(weight_ptr + entry) * vector).to(y.dtype)
            touched = 1
    if touched != 0:
        tl.store(place, y, mask=mask)


@triton.jit
def scale_kernel(
    y_ptr,  # [T, M]
    stride,
    first_column,
    gain_ptr,  # float32 [S, N]
    turn_ptr,  # float32 [S, N]
    distance_ptr,  # int32 [S]
    present_ptr,  # uint8 [S]
    tiles_ptr,  # int32 [tiles, 4]
    slot_ptr,  # int32 [E]
    weight_ptr,  # float32 [E]
    N: tl.constexpr,
    HALF: tl.constexpr,  # of N, rounded up to a multiple of 8
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK columns of one tile and as many others, the partners where there are pairs."""
    tile = tiles_ptr + tl.program_id(0) * 4
    start, rows = tl.load(tile).to(tl.int64), tl.load(tile + 1)
    first, entries = tl.load(tile + 2), tl.load(tile + 3)
    touched, distance = 0, 0
    for entry in range(first, first + entries):
        slot = tl.load(slot_ptr + entry)
        if tl.load(present_ptr + slot) != 0:
            touched = 1
            distance = tl.maximum(distance, tl.load(distance_ptr + slot))
    if touched == 0:
        return
    distance = tl.where(distance > 0, distance, HALF)
    y_ptr += start * stride + first_column
    pair = tl.program_id(1) * BLOCK
    if distance % 8 == 0:  # nearly always: 8 pairs are 16 bytes twice
        _scale_tile(
            y_ptr,
            stride,
            gain_ptr,
            turn_ptr,
            distance_ptr,
            present_ptr,
            slot_ptr,
            weight_ptr,
            rows,
            first,
            entries,
            distance,
            pair,
            N=N,
            ROWS=ROWS,
            BLOCK=BLOCK,
            WIDE=True,
        )
    else:
        for part in range(pair, pair + BLOCK, BLOCK // 8):
            _scale_tile(
                y_ptr,
                stride,
                gain_ptr,
                turn_ptr,
                distance_ptr,
                present_ptr,
                slot_ptr,
                weight_ptr,
                rows,
                first,
                entries,
                distance,
                part,
                N=N,
                ROWS=ROWS,
                BLOCK=BLOCK // 8,
                WIDE=False,
            )


@triton.jit
def _scale_tile(
    y_ptr,
    stride,
    gain_ptr,
    turn_ptr,
    distance_ptr,
    present_ptr,
    slot_ptr,
    weight_ptr,
    rows,
    first,
    entries,
    distance,
    first_pair,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Entry after entry; `distance` is that of the pairs, or any where there are none."""
    row = tl.arange(0, ROWS)[:, None]
    pair = tl.broadcast_to((first_pair + tl.arange(0, BLOCK))[None, :], (ROWS, BLOCK))
    column = pair // distance * (2 * distance) + pair % distance
    if WIDE:
        column = tl.max_contiguous(tl.multiple_of(column, [1, 8]), [1, 8])
        distance = distance // 8 * 8  # for the compiler, which so knows that 8 divides it
    has_a, has_b = (row < rows) & (column < N), (row < rows) & (column + distance < N)
    place = y_ptr + row * stride + column
    y_a = tl.load(place, mask=has_a, other=0.0).to(tl.float32)
    y_b = tl.load(place + distance, mask=has_b, other=0.0).to(tl.float32)
    for entry in range(first, first + entries):
        slot = tl.load(slot_ptr + entry).to(tl.int64)
        if tl.load(present_ptr + slot) != 0:
            weight = tl.load(weight_ptr + entry)
            gain = gain_ptr + slot * N + column
            change_a = tl.load(gain, mask=has_a, other=0.0) * y_a
            change_b = tl.load(gain + distance, mask=has_b, other=0.0) * y_b
            if tl.load(distance_ptr + slot) != 0:
                turn = turn_ptr + slot * N + column
                change_a += tl.load(turn, mask=has_a, other=0.0) * y_b
                change_b += tl.load(turn + distance, mask=has_b, other=0.0) * y_a
            y_a = (y_a + weight * change_a).to(y_ptr.dtype.element_ty).to(tl.float32)
            y_b = (y_b + weight * change_b).to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(place, y_a, mask=has_a)
    tl.store(place + distance, y_b, mask=has_b)


def add_offset(
    y: Tensor, table: OffsetTable, entries: Entries, column: int, weight: Tensor
) -> None:
    """Arguments as in `turret_kernels.elementwise.add_offset`; `weight` is float32 [E]."""
    n = table.vectors.shape[1]
    tiles = entries.tiles(_ROWS)
    add_offset_kernel[(tiles.shape[0], triton.cdiv(n, _BLOCK))](
        y,
        y.stride(0),
        column,
        table.vectors,
        table.present,
        tiles,
        entries.slot,
        weight,
        N=n,
        ROWS=_ROWS,
        BLOCK=_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )


def scale(y: Tensor, table: ScaleTable, entries: Entries, column: int, weight: Tensor) -> None:
    """Arguments as in `turret_kernels.elementwise.scale`; `weight` is float32 [E]."""
    n = table.gain.shape[1]
    half = triton.cdiv(n, 16) * 8
    tiles = entries.tiles(_ROWS)
    scale_kernel[(tiles.shape[0], triton.cdiv(half, _BLOCK // 2))](
        y,
        y.stride(0),
        column,
        table.gain,
        table.turn,
        table.distance,
        table.present,
        tiles,
        entries.slot,
        weight,
        N=n,
        HALF=half,
        ROWS=_ROWS,
        BLOCK=_BLOCK // 2,
        num_warps=4,
        enable_fp_fusion=True,
    )
