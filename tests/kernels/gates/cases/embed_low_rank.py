"""The embeddings of Llama-3-8B and of Qwen2.5-7B."""

from __future__ import annotations

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.entries import Entries
from turret_kernels.gpu.embed_low_rank import embed_low_rank
from turret_kernels.low_rank import RankPool


def _launch(vocab: int, hidden: int, rows: int) -> None:
    pool = RankPool(meta(1024, vocab), meta(1024, hidden), slots=meta(3, 64, dtype=torch.int32))
    row = torch.arange(rows, dtype=torch.int32)
    weight, slot = meta(rows, dtype=torch.float32), meta(rows, dtype=torch.int32)
    entries = Entries(slot, weight, row, torch.ones_like(row))
    embed_low_rank(meta(rows, hidden), meta(rows, dtype=torch.int64), pool, entries, weight)


# Narrow: a tile, a slot, what the tables say of it, the tokens, and their columns of A.
GATES = [
    Gate(
        f"{hidden}, {step}",
        lambda vocab=vocab, hidden=hidden, rows=rows: _launch(vocab, hidden, rows),
        registers=100,
        shared=16384,
        narrow=16,
        tensor_cores=True,
    )
    for vocab, hidden in ((128256, 4096), (152064, 3584))
    for step, rows in (("decode", 64), ("prefill", 512))
]
