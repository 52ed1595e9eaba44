"""The MLPs of Llama-3-8B and Qwen2.5-7B, one row and four."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.entries import Entries
from turret_kernels.gpu.sparse_mlp import sparse_mlp


def _launch(rows: int, hidden: int, inner: int) -> None:
    host = [torch.tensor([x], dtype=torch.int32) for x in (0, rows)]
    entries = Entries(meta(1, dtype=torch.int32), meta(1, dtype=torch.float32), *host)
    up, down, thresholds = meta(inner, hidden), meta(inner, hidden), meta(64, dtype=torch.float32)
    x, gate = meta(rows, hidden), meta(rows, inner)
    sparse_mlp(x, gate, up, None, down, None, thresholds, entries, "silu")


def _gate(rows: int, hidden: int, inner: int, registers: int) -> Gate:
    size = f"{rows} of {hidden}, {inner}"
    launch = lambda: _launch(rows, hidden, inner)  # noqa: E731
    return Gate(size, launch, registers, shared=40000, narrow=18, kernel="sparse_mlp_kernel")


# Narrow: a program's gates, one per thread, what lists its live neurons, and in the loop a neuron's
# number and activations. A sum is of 32 columns: 64 bytes are written.
GATES = [
    _gate(1, 4096, 14336, 100),
    _gate(2, 4096, 14336, 160),
    _gate(4, 4096, 14336, 255),
    _gate(4, 3584, 18944, 255),
    Gate(
        "sums of 224",
        lambda: _launch(1, 4096, 14336),
        registers=72,
        shared=1024,
        narrow=1,
        kernel="sum_partials_kernel",
    ),
]
