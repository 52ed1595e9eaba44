"""The gate of a gated MLP: `act(gate) * up`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from turret_kernels import gpu, native
from turret_kernels.native import lib

Activation = Literal["silu", "gelu_tanh"]

# In the order of the enumeration in native/common.h.
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
NUMBER = {name: number for number, name in enumerate(ACTIVATIONS)}


def act_mul(gate_up: Tensor, activation: Activation) -> Tensor:
    """[T, 2 I] (gate first) -> [T, I] in the same dtype, contiguous."""
    if gpu.takes(gate_up):
        from turret_kernels.gpu import activation as kernels

        return kernels.act_mul(gate_up, activation)
    if lib is None or gate_up.dtype != torch.bfloat16 or gate_up.device.type != "cpu":
        return act_mul_reference(gate_up, activation)
    rows, width = gate_up.shape
    out = native.allocate((rows, width // 2), gate_up.dtype)
    lib.turret_act_mul(out.data_ptr(), gate_up.data_ptr(), rows, width // 2, NUMBER[activation])
    return out


def act_mul_reference(gate_up: Tensor, activation: Activation) -> Tensor:
    """Two torch ops; the activation is rounded to the dtype before the product."""
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up
