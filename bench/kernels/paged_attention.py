"""Attention over pages on a GPU: time against the bytes or the arithmetic that it needs at least.

    python bench/kernels/paged_attention.py [--heads 32 --kv-heads 8 --dim 128] [--json FILE]

Calls are recorded into a CUDA graph, each with keys and values of its own, so that caches hold none
of them; the median of several replays counts. The floor of a decode is its keys and values at the
bandwidth of a large copy on this card, that of a prompt its products at the rate of a large matrix
product. Torch's attention gets the same keys and values without pages.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from turret_kernels.paged_attention import AttentionMetadata, paged_attention
from turret_kernels.rope_kv import KVCache

PAGE = 32
CALLS = 8
# Rows of one decode and their contexts; lengths of prompts; a prompt's chunk among decodes.
DECODES = [(b, t) for b in (1, 8, 32, 128) for t in (512, 2048, 8192, 32768) if b * t <= 1 << 19]
PROMPTS = [512, 2048, 8192]
MIXED = [(31, 2048, 512)]


def microseconds(call: Callable[[int], object]) -> float:
    """Of `call(i)`, from a graph of CALLS of them."""
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(CALLS):
            call(i)
    times = []
    for _ in range(20):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1000 / CALLS)
    return statistics.median(times[3:])


def ceilings() -> tuple[float, float]:
    """Bytes and floating-point operations per microsecond that this card reaches."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target, square = torch.empty_like(source), torch.randn(8192, 8192, device="cuda").bfloat16()
    copied = microseconds(lambda _: target.copy_(source))
    multiplied = microseconds(lambda _: torch.mm(square, square))
    return 2 * source.nbytes / copied, 2 * 8192**3 / multiplied


def batch(
    lengths: list[int], contexts: list[int], heads: int, kv_heads: int, dim: int
) -> tuple[Tensor, list[KVCache], AttentionMetadata]:
    """Queries, as many caches as there are calls, and pages in random order."""
    blocks = -(-max(contexts) // PAGE)
    order = torch.randperm(len(lengths) * blocks, dtype=torch.int32)
    meta = AttentionMetadata(
        query_start=torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32).cuda(),
        context_len=torch.tensor(contexts, dtype=torch.int32).cuda(),
        block_table=order.view(len(lengths), blocks).cuda(),
    )
    shape = len(order), kv_heads, PAGE, dim
    # Fewer where one alone is larger than any cache.
    count = max(1, min(CALLS, (8 << 30) // (4 * len(order) * kv_heads * PAGE * dim)))
    caches = [
        KVCache(*(torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)))
        for _ in range(count)
    ]
    q = torch.randn(sum(lengths), heads, dim, device="cuda", dtype=torch.bfloat16)
    return q, caches, meta


def measure(
    name: str, lengths: list[int], contexts: list[int], args: argparse.Namespace, rates: Any
) -> dict[str, Any]:
    """One row of the table."""
    heads, kv_heads, dim = args.heads, args.kv_heads, args.dim
    q, caches, meta = batch(lengths, contexts, heads, kv_heads, dim)
    scale = dim**-0.5
    found = microseconds(lambda i: paged_attention(q, caches[i % len(caches)], meta, scale))
    moved = 4 * dim * kv_heads * sum(contexts) + 4 * q.numel()
    seen = sum(n * (2 * c - n + 1) / 2 for n, c in zip(lengths, contexts, strict=True))
    floors = {"bytes": moved / rates[0], "products": 4 * heads * dim * seen / rates[1]}
    bound, floor = max(floors.items(), key=lambda item: item[1])
    row = {"case": name, "us": found, "floor_us": floor, "share": floor / found, "bound": bound}
    if len(set(lengths)) == 1 and len(set(contexts)) == 1:
        flat = [
            [
                x.view(len(lengths), -1, kv_heads, PAGE, dim).transpose(1, 2).flatten(2, 3)
                for x in kv
            ]
            for kv in ((cache.k, cache.v) for cache in caches)
        ]
        queries = q.view(len(lengths), lengths[0], heads, dim).transpose(1, 2)
        row["torch_us"] = microseconds(
            lambda i: scaled_dot_product_attention(
                queries,
                *flat[i % len(flat)],
                is_causal=lengths[0] > 1,
                scale=scale,
                enable_gqa=True,
            )
        )
    return row


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rates = ceilings()
    print(
        f"{torch.cuda.get_device_name()}: {rates[0] / 1e6:.2f} TB/s, {rates[1] / 1e6:.0f} TFLOP/s"
    )
    cases = [(f"decode {b} x {t}", [1] * b, [t] * b) for b, t in DECODES]
    cases += [(f"prompt {t}", [t], [t]) for t in PROMPTS]
    cases += [(f"{b} x {t} + chunk {n}", [1] * b + [n], [t] * (b + 1)) for b, t, n in MIXED]
    rows = []
    for name, lengths, contexts in cases:
        rows.append(row := measure(name, lengths, contexts, args, rates))
        peer = f"{row['torch_us']:9.1f} torch" if "torch_us" in row else ""
        print(
            f"{name:24} {row['us']:9.1f} us, floor {row['floor_us']:8.1f} ({row['bound']}):"
            f" {row['share']:4.0%} {peer}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}))


if __name__ == "__main__":
    main()
