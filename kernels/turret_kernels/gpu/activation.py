"""`act(gate) * up` in one pass.

Bytes: 4 I read and 2 I written per row of I 16-bit values. A program takes a piece of one row, so
that one row of a decode step spreads over many processors; each thread has 16 bytes of the gate and
the 16 of `up` that go with them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turret_kernels.activation import NUMBER, Activation

_BLOCK = 1024


@triton.jit
def activate(gate, ACTIVATION: tl.constexpr):
    """The activation of a gate, rounded to its dtype; numbered as in `turret_kernels.activation`.

    GELU's tanh form is a sigmoid too: `0.5 (1 + tanh u) = sigmoid(2 u)`.
    """
    x = gate.to(tl.float32)
    slope = x
    if ACTIVATION == 1:
        slope = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    return (x / (1.0 + tl.exp(-slope))).to(gate.dtype)


@triton.jit
def act_mul_kernel(
    out_ptr,  # [T, I], contiguous
    gate_up_ptr,  # [T, 2 I], gate first
    stride,
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
    act = activate(gate, ACTIVATION).to(tl.float32)
    tl.store(out_ptr + row * I + column, (act * up).to(gate.dtype), mask=mask)


def act_mul(gate_up: Tensor, activation: Activation) -> Tensor:
    """[T, 2 I], the last dimension contiguous -> [T, I], contiguous."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    act_mul_kernel[(rows, triton.cdiv(width, _BLOCK))](
        out,
        gate_up,
        gate_up.stride(0),
        I=width,
        ACTIVATION=NUMBER[activation],
        BLOCK=_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out
