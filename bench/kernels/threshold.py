"""TEAL's threshold of Llama-3-8B's inputs, and CATS' behind its gate."""

from __future__ import annotations

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, random, split_rows, torch_peers
from torch import Tensor
from torch.nn import functional as F

from turret_kernels.threshold import act_threshold_mul, threshold

SIZES = [
    *[("input", rows, 4096) for rows in (8, 64, 2048)],
    *[("gate", rows, 14336) for rows in (8, 64, 2048)],
]
TINY = [("input", 3, 48), ("gate", 3, 48)]
_BOUND = 1 / 128


def case(what: str, rows: int, width: int) -> Case:
    """One adapter, whose threshold drops about a third of its inputs."""
    reads = 2 if what == "gate" else 1
    parts = {"in": (reads, rows, width, 2), "out": (rows, width, 2)}

    def make(device: str, sets: int) -> dict[str, Calls]:
        inputs = [(random(rows, reads * width, device=device),) for _ in range(sets)]
        entries = split_rows(rows, 1, 0, device)
        bounds = torch.full((1,), _BOUND, device=device)
        if what == "gate":
            ours = bind(lambda x: act_threshold_mul(x, bounds, entries, "silu"), inputs)
            return {"turret": ours, **torch_peers(_gate, inputs)}
        ours = bind(lambda x: threshold(x, bounds, entries), inputs)
        return {"turret": ours, **torch_peers(_cut, inputs)}

    return Case(f"{what}, {rows}x{width}", parts, make)


def _cut(x: Tensor) -> Tensor:
    return torch.where(x.abs() <= _BOUND, 0, x)


def _gate(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return _cut(F.silu(gate)) * up
