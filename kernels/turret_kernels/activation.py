"""The gate of a gated MLP: `SiLU(gate) * up`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 I] (gate first) -> [T, I] in the same dtype."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
