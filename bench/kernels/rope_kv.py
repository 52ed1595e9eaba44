"""RoPE and cache write of Llama-3-8B's fused q, k, v, into pages of 32 tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, random
from torch import Tensor

from turret_kernels.rope_kv import KVCache, rope_and_store, rope_and_store_reference

SIZES = [(rows, 32, 8, 128) for rows in (8, 64, 2048)]
TINY = [(3, 4, 2, 32)]
_PAGE = 32


def case(rows: int, heads: int, kv_heads: int, dim: int) -> Case:
    """One layer's."""
    parts = {
        "q in": (rows, heads, dim, 2),
        "q out": (rows, heads, dim, 2),
        "k, v in": (2, rows, kv_heads, dim, 2),
        "k, v out": (2, rows, kv_heads, dim, 2),
        "angles": (rows, dim, 4),
    }

    def make(device: str, sets: int) -> dict[str, Calls]:
        pages = -(-rows // _PAGE)
        angles = random(4096, dim, device=device, dtype=torch.float32)
        positions = torch.randint(0, 4096, (rows,), device=device)
        places = torch.randperm(pages * _PAGE, device=device)[:rows]
        operands = []
        for _ in range(sets):
            fused = random(rows, heads + 2 * kv_heads, dim, device=device)
            shape = pages, kv_heads, _PAGE, dim
            cache = KVCache(random(*shape, device=device), random(*shape, device=device))
            operands.append((fused, cache))

        def by(run: Callable[..., None]) -> Calls:
            def call(fused: Tensor, cache: KVCache) -> Tensor:
                q, k, v = fused.split_with_sizes([heads, kv_heads, kv_heads], 1)
                run(q, k, v, angles, positions, places, cache)
                return q

            return bind(call, operands)

        return {"turret": by(rope_and_store), "torch": by(rope_and_store_reference)}

    return Case(f"{rows} rows, {heads} + {kv_heads} heads of {dim}", parts, make)
