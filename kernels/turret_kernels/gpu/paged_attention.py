"""Attention over pages: flash attention in two shapes; a sequence's rows decide which.

A sequence with one row in the step (decode) is read in splits, side by side; any other (a prompt,
or a chunk of one) in tiles of queries. A mixed batch launches both kernels, and each leaves the
other's sequences alone: nothing that a sequence gets depends on its batch. Which program does what
is found on the GPU, so grids depend on shapes alone.

In both, the query heads of one key head (G: 4 where 32 share 8) are rows of one matrix product, so
that keys and values are read once for all of them.

Decode. Bytes: 4 D per token and key head of D 16-bit values, and nothing else that counts. A split
is 256 tokens, 128 KiB at 128 dimensions; long sequences have longer ones, since 256 programs (of
all heads) fill a GPU and every split has to be added up. Partial sums are 4 (D + 2) G per split, 2%
of what it read, and mostly stay in L2. The last program of a head to finish adds them, in their
order: no second launch (2 µs of the 22 that the bytes of Llama-3-8B's eight rows of 2k take on an
H100). A block of 64 keys is 16 KiB of K and 16 of V; two such are under way per program and three
programs on a processor, several times what its share of the bandwidth takes. Expected: 85% of the
bandwidth from 64 MB up.

Prefill. 128 rows, 32 queries of G = 4: with fewer, L2 would have to deliver more than it can. Only
the blocks of keys that the diagonal crosses are masked. The longest tiles start first. Expected:
half of an H100's tensor cores, where attention is 4% of the work of a prefill of 2k tokens.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
from torch import Tensor

from turret_kernels.gpu.attention.decode import decode_attention_kernel
from turret_kernels.gpu.attention.prefill import prefill_attention_kernel

_SPLIT = 256  # tokens
_MOST_SPLITS = 64
_PROGRAMS = 1024  # of a decode: some eight per processor
_SEQUENCES = 256  # that a program looks at, at once, for what is its own


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    block_table: Tensor,
    scale: float,
    window: int,
) -> Tensor:
    """Arguments as in `turret_kernels.paged_attention`; the heads of a token adjoin.

    Decodes of one device take turns: they count arrivals in the same place.
    """
    tokens, heads, dim = q.shape
    sequences, kv_heads, page_tokens = context_len.shape[0], k.shape[1], k.shape[2]
    group = heads // kv_heads
    block_g, block_d = triton.next_power_of_2(group), max(16, triton.next_power_of_2(dim))
    # float32 is multiplied exactly, without tensor cores and all in registers: small tiles.
    is_exact = q.dtype == torch.float32
    out = torch.empty((tokens, heads * dim), dtype=q.dtype, device=q.device)
    operands = (out, q, q.stride(0), k, v, query_start, context_len)
    operands = (*operands, block_table, block_table.stride(0))
    operands = (*operands, sequences, scale * math.log2(math.e))
    options = {
        "KV_HEADS": kv_heads,
        "G": group,
        "D": dim,
        "BLOCK_TOKENS": page_tokens,
        "WINDOW": window,
        "SEQUENCES": _SEQUENCES,
        "BLOCK_N": 16 if is_exact else min(64, 8192 // block_d),
        "BLOCK_D": block_d,
        "enable_fp_fusion": True,
    }
    if sequences > 1 or tokens == 1:  # else the only sequence has more rows
        # Constants of the model, so that no batch changes a sum.
        splits = triton.cdiv(block_table.shape[1] * page_tokens, _SPLIT)
        splits = min(splits, _MOST_SPLITS, max(8, 256 // kv_heads))
        parts = (sequences, kv_heads, splits)
        decode_attention_kernel[(min(_PROGRAMS, math.prod(parts)),)](
            *operands,
            torch.empty((*parts, group, dim), dtype=torch.float32, device=q.device),
            torch.empty((*parts, 2, group), dtype=torch.float32, device=q.device),
            _arrivals(triton.next_power_of_2(sequences * kv_heads), q.device),
            SPLIT=_SPLIT,
            SPLITS=splits,
            BLOCK_M=max(16, block_g),
            BLOCK_G=block_g,
            PARTS=max(1, 4096 // (block_g * block_d)),
            num_warps=4,
            # Two blocks under way, pages looked up two ahead; an MI300 has room for one.
            num_stages=3 if torch.version.hip else 5,
            **options,
        )
    if tokens > sequences:  # else every sequence has one row
        rows = 16 if is_exact else 128 if block_d <= 128 else 64
        block_m = max(rows, block_g)
        prefill_attention_kernel[(kv_heads, tokens // (block_m // group) + sequences)](
            *operands,
            BLOCK_M=block_m,
            # A warp of an MI300 has twice the threads; eight would spill.
            num_warps=4 if torch.version.hip or is_exact else 8,
            num_stages=3,
            **options,
        )
    return out


@cache
def _arrivals(count: int, device: torch.device) -> Tensor:
    """Zeros; every decode leaves zeros. Made by the first step, before any graph is recorded."""
    return torch.zeros(count, dtype=torch.int32, device=device)
