"""Activation sparsity by slot: TEAL's threshold of an input, CATS' behind the gate.

Bytes per row of N 16-bit values: 2 N read and 2 N written, behind the gate 4 N read. As in
`activation.py` a program takes a piece of one row, 16 bytes per thread and access; it finds the
row's threshold while the row is on its way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turret_kernels.activation import NUMBER, Activation
from turret_kernels.entries import Entries
from turret_kernels.gpu.activation import activate

_BLOCK = 1024


@triton.jit
def row_bound(row, of_rows_ptr, slot_ptr, thresholds_ptr):
    """The threshold of a row, negative where it has none."""
    first, entries = tl.load(of_rows_ptr + row * 2), tl.load(of_rows_ptr + row * 2 + 1)
    bound = -1.0
    for entry in range(first, first + entries):
        bound = tl.maximum(bound, tl.load(thresholds_ptr + tl.load(slot_ptr + entry)))
    return bound


@triton.jit
def row_bounds(row, mask, of_rows_ptr, slot_ptr, thresholds_ptr):
    """The same of several rows."""
    first = tl.load(of_rows_ptr + row * 2, mask=mask, other=0)
    entries = tl.load(of_rows_ptr + row * 2 + 1, mask=mask, other=0)
    bound = tl.full(row.shape, -1.0, tl.float32)
    for i in range(0, tl.max(entries)):
        slot = tl.load(slot_ptr + first + i, mask=i < entries, other=0)
        value = tl.load(thresholds_ptr + slot, mask=i < entries, other=-1.0)
        bound = tl.maximum(bound, value)
    return bound


@triton.jit
def cut(x, bound):
    """0 where the magnitude does not exceed `bound`; NaN stays."""
    return tl.where(tl.abs(x.to(tl.float32)) <= bound, 0.0, x)


@triton.jit
def threshold_kernel(
    out_ptr,  # [T, N], contiguous
    x_ptr,  # [T, N]
    stride,
    thresholds_ptr,  # float32 [S]
    of_rows_ptr,  # int32 [T, 2]
    slot_ptr,  # int32 [E]
    N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK values of one row per program."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < N
    x = tl.load(x_ptr + row * stride + column, mask=mask, other=0.0)
    bound = row_bound(row, of_rows_ptr, slot_ptr, thresholds_ptr)
    tl.store(out_ptr + row * N + column, cut(x, bound), mask=mask)


@triton.jit
def act_threshold_mul_kernel(
    out_ptr,  # [T, I], contiguous
    gate_up_ptr,  # [T, 2 I], gate first
    stride,
    thresholds_ptr,  # float32 [S]
    of_rows_ptr,  # int32 [T, 2]
    slot_ptr,  # int32 [E]
    I: tl.constexpr,  # noqa: E741
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK values of one row per program."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < I
    gate = tl.load(gate_up_ptr + row * stride + column, mask=mask, other=0.0)
    up = tl.load(gate_up_ptr + row * stride + I + column, mask=mask, other=0.0)
    bound = row_bound(row, of_rows_ptr, slot_ptr, thresholds_ptr)
    product = cut(activate(gate, ACTIVATION), bound).to(tl.float32) * up
    tl.store(out_ptr + row * I + column, product.to(gate.dtype), mask=mask)


def threshold(x: Tensor, thresholds: Tensor, entries: Entries) -> Tensor:
    """[T, N], the last dimension contiguous -> the same shape, contiguous."""
    rows, width = x.shape
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    threshold_kernel[(rows, triton.cdiv(width, _BLOCK))](
        out,
        x,
        x.stride(0),
        thresholds,
        entries.of_rows(rows),
        entries.slot,
        N=width,
        BLOCK=_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out


def act_threshold_mul(
    gate_up: Tensor, thresholds: Tensor, entries: Entries, activation: Activation
) -> Tensor:
    """[T, 2 I], the last dimension contiguous -> [T, I], contiguous."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    act_threshold_mul_kernel[(rows, triton.cdiv(width, _BLOCK))](
        out,
        gate_up,
        gate_up.stride(0),
        thresholds,
        entries.of_rows(rows),
        entries.slot,
        I=width,
        ACTIVATION=NUMBER[activation],
        BLOCK=_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out
