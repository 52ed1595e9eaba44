"""Changes of Llama-3-8B's q, k, v and of its head."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.entries import Entries
from turret_kernels.gpu.sparse_delta import sparse_delta
from turret_kernels.sparse_delta import SparseTable


def _launch(n: int, width: int, column: int, dtype: torch.dtype = torch.bfloat16) -> None:
    host = [torch.tensor([x], dtype=torch.int32) for x in (0, 8)]
    entries = Entries(meta(1, dtype=torch.int32), meta(1, dtype=torch.float32), *host)
    table = SparseTable(64, 4096, n, torch.device("meta"))
    sparse_delta(meta(8, width, dtype=dtype), meta(8, 4096), table, entries, column, entries.weight)


# Narrow: everything; see the kernel.
GATES = [
    Gate("1024 at 4096 of 6144", lambda: _launch(1024, 6144, 4096), 72, shared=1024, narrow=34),
    Gate(
        "128256 logits",
        lambda: _launch(128256, 128256, 0, torch.float32),
        registers=72,
        shared=1024,
        narrow=34,
    ),
]
