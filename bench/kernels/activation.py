"""SiLU and product of Llama-3-8B's MLP."""

from __future__ import annotations

from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, random, torch_peers
from torch import Tensor
from torch.nn import functional as F

from turret_kernels.activation import act_mul

SIZES = [(rows, 14336) for rows in (8, 64, 2048)]
TINY = [(3, 48)]


def case(rows: int, width: int) -> Case:
    """`width`: of the product."""

    def make(device: str, sets: int) -> dict[str, Calls]:
        inputs = [(random(rows, 2 * width, device=device),) for _ in range(sets)]
        return {
            "turret": bind(lambda x: act_mul(x, "silu"), inputs),
            **torch_peers(_silu_mul, inputs),
        }

    parts = {"gate, up": (2, rows, width, 2), "out": (rows, width, 2)}
    return Case(f"silu, {rows}x{width}", parts, make)


def _silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up
