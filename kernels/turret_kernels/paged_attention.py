"""Causal attention of a ragged batch over the paged cache: prefill, decode, or both at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from turret_kernels import gpu, native
from turret_kernels.native import TILES, lib
from turret_kernels.rope_kv import KVCache


@dataclass(slots=True)
class AttentionMetadata:
    """Where each sequence of the batch lies. The tensors are where the cache is.

    Attributes:
        query_start: int32 [S + 1], first token row of each sequence; each has one or more.
        context_len: int32 [S], tokens of the sequence in the cache, this step's included.
        block_table: int32 [S, max_blocks], pages of each sequence; the rest is unspecified.
    """

    query_start: Tensor
    context_len: Tensor
    block_table: Tensor


def paged_attention(
    q: Tensor, cache: KVCache, meta: AttentionMetadata, scale: float, window: int = 0
) -> Tensor:
    """Attend each query to the positions of its sequence up to its own.

    Args:
        q: [T, heads, head_dim], rotated; may be strided.
        cache: this layer's pages, this step's keys and values already written.
        meta: the ragged batch.
        scale: multiplies the scores.
        window: sliding window in tokens (the query's own position counts); 0 = all.

    Returns:
        [T, heads * head_dim], contiguous, dtype of `q`.
    """
    if gpu.takes(q):
        from turret_kernels.gpu import paged_attention as triton_kernels

        return triton_kernels.paged_attention(
            q,
            cache.k,
            cache.v,
            meta.query_start,
            meta.context_len,
            meta.block_table,
            scale,
            window,
        )
    if not cache.native or lib is None:
        return paged_attention_reference(q, cache, meta, scale, window)
    tokens, heads, dim = q.shape
    out = native.allocate((tokens, heads * dim), q.dtype)
    lib.turret_paged_attention(
        out.data_ptr(),
        q.data_ptr(),
        q.stride(0),
        cache.k.data_ptr(),
        cache.v.data_ptr(),
        meta.query_start.data_ptr(),
        meta.context_len.data_ptr(),
        meta.block_table.data_ptr(),
        meta.block_table.stride(0),
        meta.context_len.shape[0],
        heads,
        cache.k.shape[1],
        dim,
        cache.k.shape[2],
        scale,
        window,
        TILES,
    )
    return out


def paged_attention_reference(
    q: Tensor, cache: KVCache, meta: AttentionMetadata, scale: float, window: int = 0
) -> Tensor:
    """One sequence at a time: gather its pages, then torch's attention with an explicit mask."""
    block_tokens = cache.k.shape[2]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    starts, contexts = meta.query_start.tolist(), meta.context_len.tolist()
    for i, context in enumerate(contexts):
        first, last = starts[i], starts[i + 1]
        blocks = meta.block_table[i, : -(-context // block_tokens)].long()
        k = cache.k[blocks].transpose(1, 2).flatten(0, 1)[:context].transpose(0, 1)
        v = cache.v[blocks].transpose(1, 2).flatten(0, 1)[:context].transpose(0, 1)
        position = torch.arange(context - (last - first), context, device=q.device)[:, None]
        key = torch.arange(context, device=q.device)[None]
        mask = key <= position
        if window:
            mask &= key > position - window
        out[first:last] = F.scaled_dot_product_attention(
            q[first:last].transpose(0, 1)[None],
            k[None],
            v[None],
            attn_mask=mask,
            scale=scale,
            enable_gqa=True,
        )[0].transpose(0, 1)
    return out.flatten(1)
