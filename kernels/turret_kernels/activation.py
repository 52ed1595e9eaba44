"""The gate of a gated MLP: `SiLU(gate) * up`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from turret_kernels import gpu, native
from turret_kernels.native import lib


def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 I] (gate first) -> [T, I] in the same dtype, contiguous."""
    if gpu.takes(gate_up):
        from turret_kernels.gpu import activation

        return activation.silu_mul(gate_up)
    if lib is None or gate_up.dtype != torch.bfloat16 or gate_up.device.type != "cpu":
        return silu_mul_reference(gate_up)
    rows, width = gate_up.shape
    out = native.allocate((rows, width // 2), gate_up.dtype)
    lib.turret_silu_mul(out.data_ptr(), gate_up.data_ptr(), rows, width // 2)
    return out


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """Two torch ops; SiLU is rounded to the dtype before the product."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
