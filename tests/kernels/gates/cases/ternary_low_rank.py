"""The sites of `low_rank`'s gates, and its remarks; Qwen's 18944 is 2368 words, not of 128."""

from __future__ import annotations

import torch
from tests.kernels.gates.cases.low_rank import SITES
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.entries import Entries
from turret_kernels.gpu.ternary_low_rank import ternary_low_rank
from turret_kernels.ternary_low_rank import TernaryPool, TernarySlices, num_words


def _launch(k: int, widths: tuple[int, ...], rows: int, out: torch.dtype) -> None:
    pools = []
    for n in widths:
        a, b = (meta(1024, num_words(size), dtype=torch.int16) for size in (k, n))
        slots, scale = meta(3, 64, dtype=torch.int32), meta(1024, dtype=torch.float32)
        pool = TernaryPool(a=a, b=b, scale=scale, in_features=k, out_features=n, slots=slots)
        pool.assign(0, 0, 16)
        pools.append(pool)
    columns = [sum(widths[:i]) for i in range(len(widths))]
    row = torch.arange(rows, dtype=torch.int32)
    weight, slot = meta(rows, dtype=torch.float32), meta(rows, dtype=torch.int32)
    entries = Entries(slot, weight, row, torch.ones_like(row))
    y, slices = meta(rows, sum(widths), dtype=out), TernarySlices(pools, columns)
    ternary_low_rank(y, meta(rows, k), slices, entries, [weight] * len(pools))


def _gates(
    name: str, k: int, widths: tuple[int, ...], out: torch.dtype = torch.bfloat16
) -> list[Gate]:
    def decode() -> None:
        _launch(k, widths, 64, out)

    def prefill() -> None:
        _launch(k, widths, 512, out)

    # Narrow, beside what is narrow there: B's words, eight bytes for every thread, and scales.
    shrink, expand = "ternary_shrink_kernel", "ternary_expand_kernel"
    return [
        Gate(f"ternary shrink of {name}, decode", decode, 145, 16384, 10, True, shrink),
        Gate(f"ternary shrink of {name}, prefill", prefill, 125, 36880, 15, True, shrink),
        Gate(f"ternary expand to {name}, decode", decode, 120, 8704, 16, True, expand),
        Gate(f"ternary expand to {name}, prefill", prefill, 144, 16384, 10, True, expand),
    ]


GATES = [
    *(gate for name, site in SITES.items() for gate in _gates(name, *site)),
    _gates("head", 4096, (128256,), torch.float32)[2],
]
