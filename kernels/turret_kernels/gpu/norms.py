"""RMSNorm in one pass, with or without the residual addition that precedes it.

Bytes: 2 N read and 2 N written per row of N 16-bit values; with a residual 4 N each. The weight
(2 N for all rows) stays in L2. Nothing else is moved: a program holds its rows in registers, so the
mean square costs no second read.

A tile has at least 2048 values and 16 per thread, two 16-byte loads: one row of a hidden state, or
several heads of a q/k norm, whose rows are short. Statistics are float32; a row is summed in one
order whatever the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048


@triton.jit(do_not_specialize=["rows"])
def rms_norm_kernel(
    out_ptr,  # [rows, N], contiguous
    x_ptr,  # [rows / HEADS, HEADS, N]
    residual_ptr,  # [rows, N], updated in place; None without
    weight_ptr,  # [N]; float32 where it multiplies unrounded
    rows,
    x_stride,
    x_head_stride,
    residual_stride,
    eps,
    HEADS: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS rows per program, whole."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_N)
    mask = (row < rows)[:, None] & (column < N)[None, :]
    # Asked for before the sums, so that it is there after them.
    weight = tl.load(weight_ptr + column, mask=column < N, other=0.0)
    start = (row // HEADS) * x_stride + (row % HEADS) * x_head_stride
    x = tl.load(x_ptr + start[:, None] + column[None, :], mask=mask, other=0.0)
    wide = x.to(tl.float32)
    if residual_ptr is not None:
        residual = residual_ptr + row[:, None] * residual_stride + column[None, :]
        wide += tl.load(residual, mask=mask, other=0.0).to(tl.float32)
        # The next layer reads the rounded sum, so that is what is normalised.
        x = wide.to(x.dtype)
        tl.store(residual, x, mask=mask)
        wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / N + eps)
    normal = wide * scale[:, None]
    if weight_ptr.dtype == x_ptr.dtype:  # known when compiling
        normal = normal.to(x.dtype).to(tl.float32)
    y = (normal * weight.to(tl.float32)[None, :]).to(x.dtype)
    tl.store(out_ptr + row[:, None] * N + column[None, :], y, mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[T, N] or [T, heads, N], the last dimension contiguous -> the same shape, contiguous."""
    return _launch(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[T, N] -> [T, N]; `residual` [T, N] becomes the sum."""
    return _launch(x, residual, weight, eps)


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tokens, n = x.shape[0], x.shape[-1]
    heads, head_stride = (x.shape[1], x.stride(1)) if x.dim() == 3 else (1, 0)
    block = triton.next_power_of_2(n)
    rows = max(1, _TILE // block)
    rms_norm_kernel[(triton.cdiv(tokens * heads, rows),)](
        out,
        x,
        residual,
        weight,
        tokens * heads,
        x.stride(0),
        head_stride,
        0 if residual is None else residual.stride(0),
        eps,
        HEADS=heads,
        N=n,
        BLOCK_N=block,
        ROWS=rows,
        num_warps=min(16, rows * block // 512),
        enable_fp_fusion=True,
    )
    return out
