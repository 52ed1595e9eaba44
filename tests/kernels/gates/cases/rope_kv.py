"""Fused rows of Llama-3-8B, Qwen2.5-7B and SmolLM2-135M (heads of 64)."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.gpu.rope_kv import rope_and_store


def _launch(heads: int, kv_heads: int, dim: int) -> None:
    q, k, v = meta(8, heads + 2 * kv_heads, dim).split_with_sizes([heads, kv_heads, kv_heads], 1)
    table, index = meta(4096, dim, dtype=torch.float32), meta(8, dtype=torch.int64)
    pages = meta(64, kv_heads, 16, dim)
    rope_and_store(q, k, v, table, index, index, pages, pages)


# Narrow: the position of a token, and its slot.
GATES = [
    Gate("32 + 8 heads of 128", lambda: _launch(32, 8, 128), registers=64, narrow=2),
    Gate("28 + 4 heads of 128", lambda: _launch(28, 4, 128), registers=64, narrow=2),
    Gate("9 + 3 heads of 64", lambda: _launch(9, 3, 64), registers=64, narrow=2),
]
