"""Heads of Llama-3-8B, SmolLM2-135M and Gemma-3-1B over pages of 32 tokens: decode, a prompt."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.gpu.paged_attention import paged_attention


def _launch(
    tokens: int, sequences: int, heads: int, kv_heads: int, dim: int, window: int = 0
) -> None:
    q = meta(tokens, heads + 2 * kv_heads, dim)[:, :heads]
    pages = meta(64, kv_heads, 32, dim)
    start, context, table = (
        meta(*shape, dtype=torch.int32)
        for shape in ((sequences + 1,), (sequences,), (sequences, 256))
    )
    paged_attention(q, pages, pages, start, context, table, dim**-0.5, window)


# Narrow: numbers of pages (triton 3.6 loads one for every key, 3.9 shares them), where sequences
# begin and end, and in a decode the maxima and sums of the splits. 168 registers are three programs
# of a decode per processor.
GATES = [
    Gate(
        "decode, 32 + 8 heads of 128",
        lambda: _launch(8, 8, 32, 8, 128),
        registers=168,
        shared=73_000,
        narrow=120,
        tensor_cores=True,
    ),
    Gate(
        "decode, 9 + 3 heads of 64",
        lambda: _launch(8, 8, 9, 3, 64),
        registers=144,
        shared=38_000,
        narrow=90,
        tensor_cores=True,
    ),
    Gate(
        "prompt, 32 + 8 heads of 128",
        lambda: _launch(512, 1, 32, 8, 128),
        registers=232,
        shared=100_000,
        narrow=80,
        tensor_cores=True,
    ),
    Gate(
        "prompt, 9 + 3 heads of 64",
        lambda: _launch(512, 1, 9, 3, 64),
        registers=200,
        shared=51_000,
        narrow=40,
        tensor_cores=True,
    ),
    Gate(
        "decode, 4 + 1 heads of 256, window",
        lambda: _launch(8, 8, 4, 1, 256, 512),
        registers=237,
        shared=76_000,
        narrow=120,
        tensor_cores=True,
    ),
    Gate(
        "prompt, 4 + 1 heads of 256, window",
        lambda: _launch(512, 1, 4, 1, 256, 512),
        registers=235,
        shared=100_000,
        narrow=40,
        tensor_cores=True,
    ),
]
