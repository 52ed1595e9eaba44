"""RMSNorm of Llama-3-8B's hidden states, with and without the residual, and of Qwen3-8B's heads."""

from __future__ import annotations

from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, random, torch_peers
from torch.nn import functional as F

from turret_kernels.norms import add_rms_norm, rms_norm

SIZES = [
    *[("norm", rows, 4096) for rows in (8, 64, 2048)],
    *[("norm + residual", rows, 4096) for rows in (8, 64, 2048)],
    *[("heads", rows, 32, 128) for rows in (8, 64, 2048)],
]
TINY = [("norm", 3, 48), ("norm + residual", 3, 48), ("heads", 3, 2, 16)]


def case(what: str, rows: int, *shape: int) -> Case:
    """`shape`: of a row."""
    values = (rows, *shape, 2)
    parts = {"x": values, "out": values, "weight": (shape[-1], 2)}
    if what == "norm + residual":
        parts |= {"residual in": values, "residual out": values}

    def make(device: str, sets: int) -> dict[str, Calls]:
        weight = random(shape[-1], device=device)
        inputs = [random(rows, *shape, device=device) for _ in range(sets)]
        if what == "norm + residual":
            pairs = [(x, random(rows, *shape, device=device)) for x in inputs]
            ours = bind(lambda x, residual: add_rms_norm(x, residual, weight, 1e-5), pairs)
            theirs = torch_peers(
                lambda x, residual: F.rms_norm(residual.add_(x), shape[-1:], weight, 1e-5), pairs
            )
        else:
            alone = [(x,) for x in inputs]
            ours = bind(lambda x: rms_norm(x, weight, 1e-5), alone)
            theirs = torch_peers(lambda x: F.rms_norm(x, shape[-1:], weight, 1e-5), alone)
        return {"turret": ours, **theirs}

    return Case(f"{what}, {'x'.join(map(str, (rows, *shape)))}", parts, make)
