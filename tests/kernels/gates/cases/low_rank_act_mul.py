"""Gate and up of Llama-3-8B and of Gemma 3 1B, whose activation is another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.activation import Activation
from turret_kernels.entries import Entries
from turret_kernels.gpu.low_rank_act_mul import low_rank_act_mul
from turret_kernels.low_rank import RankPool, RankSlices


def _launch(
    k: int, inner: int, columns: list[int], rows: int, activation: Activation
) -> Callable[[], object]:
    def launch() -> None:
        pools = []
        for _ in columns:
            slots = meta(3, 64, dtype=torch.int32)
            pools.append(RankPool(meta(1024, k), meta(1024, inner), slots=slots))
            pools[-1].assign(0, 0, 16)
        row = torch.arange(rows, dtype=torch.int32)
        weight, slot = meta(rows, dtype=torch.float32), meta(rows, dtype=torch.int32)
        entries = Entries(slot, weight, row, torch.ones_like(row))
        slices, weights = RankSlices(pools, columns), [weight] * len(columns)
        gate_up, x = meta(rows, 2 * inner), meta(rows, k)
        low_rank_act_mul(gate_up, x, slices, entries, weights, activation)

    return launch


def _gate(
    name: str, launch: Callable[[], object], registers: int, shared: int, narrow: int
) -> Gate:
    return Gate(name, launch, registers, shared, narrow, True, "expand_act_mul_kernel")


# Narrow: a tile, slots, what their tables say, and in a decode hidden values, as in `low_rank`.
GATES = [
    _gate("14336, decode", _launch(4096, 14336, [0, 14336], 64, "silu"), 100, 4608, 20),
    _gate("14336, prefill", _launch(4096, 14336, [0, 14336], 512, "silu"), 125, 8192, 14),
    _gate("14336, up alone, decode", _launch(4096, 14336, [14336], 64, "silu"), 80, 4608, 12),
    _gate("6912, GELU, decode", _launch(1152, 6912, [0, 6912], 64, "gelu_tanh"), 100, 4608, 16),
]
