"""Embedding and head of Llama-3-8B, the head of Qwen2.5-7B."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.entries import Entries
from turret_kernels.gpu.row_delta import embed_row_delta, head_row_delta
from turret_kernels.row_delta import RowTable

TABLE = RowTable(64, torch.device("meta"))


def _entries() -> Entries:
    host = [torch.tensor([x], dtype=torch.int32) for x in (0, 8)]
    return Entries(meta(1, dtype=torch.int32), meta(1, dtype=torch.float32), *host)


def _embed(hidden: int) -> None:
    entries = _entries()
    tokens = meta(8, dtype=torch.int64)
    embed_row_delta(meta(8, hidden), tokens, TABLE, entries, entries.weight)


def _head(hidden: int, vocab: int) -> None:
    entries, y = _entries(), meta(8, vocab, dtype=torch.float32)
    head_row_delta(y, meta(8, hidden), TABLE, entries, entries.weight)


# Narrow: the token, the entries of its row, an entry's numbers, and the search for the token; at
# the head four changed ids and their logits.
GATES = [
    Gate("embedding of 4096", lambda: _embed(4096), registers=40, narrow=15),
    Gate("head of 4096", lambda: _head(4096, 128256), registers=80, shared=64, narrow=15),
    Gate("head of 3584", lambda: _head(3584, 152064), registers=80, shared=64, narrow=15),
]
