"""The linears of Llama-3-8B, one of Qwen2.5-7B whose input no step divides, and a head.

Ranks, and how many rows and adapters a step has, are no part of what is compiled: a decode of 1 row
and one of 64 run the same code, at rank 8 and at 64.
"""

from __future__ import annotations

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.entries import Entries
from turret_kernels.gpu.low_rank import low_rank
from turret_kernels.low_rank import RankPool, RankSlices

SITES = {
    "qkv": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate, up": (4096, (14336, 14336)),
    "down": (14336, (4096,)),
    "down of Qwen": (18944, (3584,)),
}


def _launch(k: int, widths: tuple[int, ...], rows: int, out: torch.dtype, experts: int = 0) -> None:
    pools = []
    for n in widths:
        pool = RankPool(meta(1024, k), meta(1024, n), slots=meta(3, 64, dtype=torch.int32))
        pool.assign(0, 0, 16 + experts, experts)
        pools.append(pool)
    columns = [sum(widths[:i]) for i in range(len(widths))]
    row = torch.arange(rows, dtype=torch.int32)
    weight, slot = meta(rows, dtype=torch.float32), meta(rows, dtype=torch.int32)
    entries = Entries(slot, weight, row, torch.ones_like(row))
    y = meta(rows, sum(widths), dtype=out)
    low_rank(y, meta(rows, k), RankSlices(pools, columns), entries, [weight] * len(pools))


def _gates(
    name: str, k: int, widths: tuple[int, ...], out: torch.dtype = torch.bfloat16
) -> list[Gate]:
    def decode() -> None:
        _launch(k, widths, 64, out)

    def prefill() -> None:
        _launch(k, widths, 512, out)

    # Narrow: a tile, a slot, and what the slot's tables say; in a decode hidden values too, which
    # come in tiles of 16 x 16: eight bytes for every thread.
    return [
        Gate(f"shrink of {name}, decode", decode, 100, 49152, 8, True, "shrink_kernel"),
        Gate(f"shrink of {name}, prefill", prefill, 100, 61456, 7, True, "shrink_kernel"),
        Gate(f"expand to {name}, decode", decode, 120, 8704, 16, True, "expand_kernel"),
        Gate(f"expand to {name}, prefill", prefill, 128, 16384, 8, True, "expand_kernel"),
    ]


GATES = [
    *(gate for name, site in SITES.items() for gate in _gates(name, *site)),
    _gates("head", 4096, (128256,), torch.float32)[2],
    # Hidden values of single tokens, at columns that an adapter's rank decides: all narrow.
    Gate(
        "a mixture, decode",
        lambda: _launch(4096, (4096,), 64, torch.bfloat16, 8),
        registers=64,
        shared=2048,
        narrow=71,
        kernel="mix_kernel",
    ),
    Gate(
        "a mixture, prefill",
        lambda: _launch(4096, (4096,), 512, torch.bfloat16, 8),
        registers=128,
        shared=8192,
        narrow=135,
        kernel="mix_kernel",
    ),
]
