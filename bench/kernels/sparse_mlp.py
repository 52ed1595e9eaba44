"""The MLP of Llama-3-8B where CATS leaves a share of its neurons alive, beside the dense one."""

from __future__ import annotations

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, random, split_rows, torch_peers
from torch import Tensor
from torch.nn import functional as F

from turret_kernels.linear import pack_linear
from turret_kernels.sparse_mlp import MlpWeights, pack_neurons, sparse_mlp

# Rows, hidden, neurons, of which a percentage lives in some row.
SIZES = [(rows, 4096, 14336, live) for rows in (1, 2, 4) for live in (10, 30, 50)]
TINY = [(1, 32, 64, 50), (2, 32, 64, 30)]
_NEURONS = 64  # of a program: so many partial sums there are


def case(rows: int, hidden: int, inner: int, live: int) -> Case:
    """Both weights behind the gate are read for live neurons alone."""
    alive = inner * live // 100
    parts = {"gate": (hidden, inner, 2), "up, down": (2, hidden, alive, 2)}
    sums = {"sums": (2, inner // _NEURONS, rows, hidden, 4)}

    def make(device: str, sets: int) -> dict[str, Calls]:
        x = random(rows, hidden, device=device)
        entries = split_rows(rows, 1, 0, device)
        operands = []
        for _ in range(sets):
            gate_up = random(2 * inner, hidden, device=device)
            down = random(hidden, inner, device=device)
            weights = MlpWeights(pack_linear(gate_up), None, pack_linear(down), None, "silu")
            # The largest of a neuron's activations decides.
            found = F.silu(F.linear(x, gate_up[:inner])).abs().float().amax(0)
            bound = torch.quantile(found, 1 - live / 100).reshape(1)
            operands.append((gate_up, down, weights, pack_neurons(gate_up[inner:], down), bound))

        def dense(gate_up: Tensor, down: Tensor) -> Tensor:
            gate, up = F.linear(x, gate_up).chunk(2, -1)
            return F.linear(F.silu(gate) * up, down)

        ours = bind(
            lambda weights, neurons, bound: sparse_mlp(x, weights, neurons, bound, entries),
            [those[2:] for those in operands],
        )
        return {"turret": ours, **torch_peers(dense, [those[:2] for those in operands])}

    flop = 2 * rows * hidden * (inner + 2 * alive)
    name = f"{rows} rows of {hidden}, {live}% of {inner}"
    return Case(name, parts, make, launches=3, flop=flop, cached=sums)
