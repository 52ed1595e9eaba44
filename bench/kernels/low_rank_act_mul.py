"""Llama-3-8B's adapted gate and up to their product, beside the same in kernels of their own.

Rows as in `low_rank`. In a decode gate and up lie in L2, where their product left them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.low_rank import fill_slices
from bench.kernels.operands import bind, random, split_rows
from torch import Tensor
from torch.nn import functional as F

from turret_kernels.activation import act_mul
from turret_kernels.entries import Entries
from turret_kernels.low_rank import low_rank
from turret_kernels.low_rank_act_mul import low_rank_act_mul

# Rows, adapters among them, rank, hidden and inner width.
SIZES = [(*step, 16, 4096, 14336) for step in ((1, 1), (16, 16), (64, 16), (64, 64), (2048, 1))]
TINY = [(4, 2, 16, 64, 48)]


def case(rows: int, adapters: int, rank: int, k: int, inner: int) -> Case:
    """Adapters of one rank."""
    factors = {"A": (2, adapters, rank, k, 2), "B": (2, adapters, rank, inner, 2)}
    values = {"gate, up": (2, rows, inner, 2), "out": (rows, inner, 2)}
    decodes = rows <= 256

    def make(device: str, sets: int) -> dict[str, Calls]:
        slots = sets * adapters
        a, b = (
            random(2, slots, rank, k, device=device),
            random(2, slots, rank, inner, device=device),
        )
        x, gate_up = random(rows, k, device=device), random(rows, 2 * inner, device=device)
        slices = fill_slices(list(a), list(b), [0, inner])
        steps = [(split_rows(rows, adapters, step, device),) for step in range(sets)]

        def fused(entries: Entries) -> Tensor:
            y = gate_up if gate_up.is_cuda else gate_up.clone()  # elsewhere it is changed
            return low_rank_act_mul(y, x, slices, entries, "silu")

        def apart(entries: Entries) -> Tensor:  # gate and up change from call to call: no matter
            low_rank(gate_up, x, slices, entries)
            return act_mul(gate_up, "silu")

        own = [torch.arange(s, s + adapters, device=device) for s in range(0, slots, adapters)]
        peer: Callable[[Tensor], Tensor] = partial(_bmm, gate_up.clone(), x, a, b)
        return {
            "turret": bind(fused, steps),
            "apart": bind(apart, steps),
            "torch.bmm": [partial(peer, step) for step in own],
        }

    return Case(
        f"{rows} rows, {adapters} adapters, rank {rank}",
        factors if decodes else factors | {"x": (rows, k, 2)} | values,
        make,
        launches=2,
        share=0.75,
        flop=2 * rows * rank * 2 * (k + inner),
        cached=values if decodes else {},
    )


def _bmm(gate_up: Tensor, x: Tensor, a: Tensor, b: Tensor, slots: Tensor) -> Tensor:
    """A batch's factors gathered adapter by adapter, then two products of batches."""
    batch = x.view(len(slots), -1, x.shape[1])
    deltas = [batch @ a[i][slots].mT @ b[i][slots] for i in range(2)]
    adapted = gate_up + torch.cat([delta.flatten(0, 1) for delta in deltas], 1)
    gate, up = adapted.chunk(2, -1)
    return F.silu(gate) * up
