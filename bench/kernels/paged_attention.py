"""Attention of Llama-3-8B over pages of 32 tokens: decodes, prompts, and a chunk among decodes.

Torch's attention gets the same keys and values without pages.
"""

from __future__ import annotations

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from turret_kernels.paged_attention import AttentionMetadata, paged_attention
from turret_kernels.rope_kv import KVCache

_PAGE = 32
_SHAPE = (32, 8, 128)  # heads, key heads, dimensions
# Name, rows and contexts of the sequences, shape.
SIZES = [
    *[
        (f"decode {b} x {t}", (1,) * b, (t,) * b, *_SHAPE)
        for b in (1, 8, 32, 128)
        for t in (512, 2048, 8192, 32768)
        if b * t <= 1 << 19
    ],
    *[(f"prompt {t}", (t,), (t,), *_SHAPE) for t in (512, 2048, 8192)],
    ("31 x 2048 + chunk 512", (1,) * 31 + (512,), (2048,) * 32, *_SHAPE),
]
TINY = [("decode", (1, 1), (40, 40), 4, 2, 16), ("mixed", (1, 5), (40, 40), 4, 2, 16)]
_BYTES = 8 << 30  # of all caches


def case(
    name: str,
    lengths: tuple[int, ...],
    contexts: tuple[int, ...],
    heads: int,
    kv_heads: int,
    dim: int,
) -> Case:
    """A step of one layer."""
    parts = {
        "q, out": (2, sum(lengths), heads, dim, 2),
        "k, v": (2, sum(contexts), kv_heads, dim, 2),
    }
    seen = sum(n * (2 * c - n + 1) // 2 for n, c in zip(lengths, contexts, strict=True))

    def make(device: str, sets: int) -> dict[str, Calls]:
        blocks = -(-max(contexts) // _PAGE)
        pages = len(lengths) * blocks
        order = torch.randperm(pages, dtype=torch.int32)
        start = torch.tensor([0, *lengths]).cumsum(0).int()
        meta = AttentionMetadata(
            query_start=start.to(device),
            context_len=torch.tensor(contexts, dtype=torch.int32).to(device),
            block_table=order.view(len(lengths), blocks).to(device),
        )
        shape = pages, kv_heads, _PAGE, dim
        count = max(1, min(sets, _BYTES // (4 * pages * kv_heads * _PAGE * dim)))
        caches = [
            (KVCache(*torch.randn(2, *shape, device=device, dtype=torch.bfloat16)),)
            for _ in range(count)
        ]
        q = torch.randn(sum(lengths), heads, dim, device=device, dtype=torch.bfloat16)
        scale = dim**-0.5
        calls = {"turret": bind(lambda cache: paged_attention(q, cache, meta, scale), caches)}
        if len(set(lengths)) > 1:
            return calls
        queries = q.view(len(lengths), lengths[0], heads, dim).transpose(1, 2)

        def flat(pages: Tensor) -> Tensor:
            found = pages[meta.block_table].transpose(1, 2)  # [sequences, heads, blocks, page, dim]
            return found.flatten(2, 3)[:, :, : contexts[0]]

        def run(k: Tensor, v: Tensor) -> Tensor:
            found = scaled_dot_product_attention(
                queries, k, v, is_causal=lengths[0] > 1, scale=scale, enable_gqa=True
            )
            return found.transpose(1, 2).reshape(q.shape[0], -1)

        sequences = [(flat(cache.k), flat(cache.v)) for (cache,) in caches]
        return {**calls, "torch": bind(run, sequences)}

    # A prompt is bound by its products, of which tensor cores do about half what they can.
    is_prompt = max(lengths) > 1
    return Case(
        name,
        parts,
        make,
        launches=2 if len(set(lengths)) > 1 else 1,
        share=0.5 if is_prompt else 0.85,
        flop=4 * heads * dim * seen,
    )
