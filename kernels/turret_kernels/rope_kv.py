"""Rotary embedding of queries and keys, and the write of keys and values into the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.native import lib


@dataclass(slots=True)
class KVCache:
    """Keys and values of one layer, in pages.

    The order of the numbers inside a page is private to rope_and_store and paged_attention: the
    native kernels lay keys and values out as operands of their matrix products. Pages of Triton and
    torch are as their shape says.

    Attributes:
        k: [blocks, kv_heads, block_tokens, head_dim].
        v: the same shape.
    """

    k: Tensor
    v: Tensor

    @property
    def native(self) -> bool:
        """Laid out for (and served by) the native kernels."""
        tokens, dim = self.k.shape[2:]
        return (
            lib is not None
            and self.k.dtype == torch.bfloat16
            and self.k.device.type == "cpu"
            and tokens % 32 == 0
            and dim % 32 == 0
            and dim <= 256
        )


def rope_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    cache: KVCache,
) -> None:
    """Rotate `q` in place, rotate `k`, and write `k`, `v` to their cache slots.

    Args:
        q: [T, heads, head_dim], may be a view of a fused projection: a token's heads adjoin.
        k: [T, kv_heads, head_dim], likewise; not rotated in place.
        v: [T, kv_heads, head_dim], likewise.
        cos_sin: float32 [positions, head_dim]: cosines of the half dimensions, then sines.
        positions: int64 [T].
        slots: int64 [T], block * block_tokens + offset.
        cache: written at `slots`.
    """
    if gpu.takes(q):
        from turret_kernels.gpu import rope_kv

        rope_kv.rope_and_store(q, k, v, cos_sin, positions, slots, cache.k, cache.v)
        return
    if cache.native and lib is not None:
        lib.turret_rope_and_store(
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            q.stride(0),
            k.stride(0),
            v.stride(0),
            cos_sin.data_ptr(),
            positions.data_ptr(),
            slots.data_ptr(),
            cache.k.data_ptr(),
            cache.v.data_ptr(),
            q.shape[0],
            q.shape[1],
            k.shape[1],
            q.shape[2],
            cache.k.shape[2],
        )
        return
    rope_and_store_reference(q, k, v, cos_sin, positions, slots, cache)


def rope_and_store_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    cache: KVCache,
) -> None:
    """As `rope_and_store`, by torch's indexing."""
    block_tokens = cache.k.shape[2]
    table = cos_sin[positions]
    cos, sin = table.chunk(2, dim=-1)
    q.copy_(rotate(q, cos, sin))
    block, offset = slots // block_tokens, slots % block_tokens
    cache.k[block, :, offset] = rotate(k, cos, sin)
    cache.v[block, :, offset] = v


def store_kv(k: Tensor, v: Tensor, slots: Tensor, cache: KVCache) -> None:
    """Write keys as they are, rotated by nobody, and values to their cache slots.

    Args:
        k: [T, kv_heads, head_dim], may be a strided view.
        v: [T, kv_heads, head_dim], likewise.
        slots: int64 [T], block * block_tokens + offset.
        cache: written at `slots`.
    """
    dim = k.shape[2]
    identity = torch.ones(1, dim, device=k.device)
    identity[:, dim // 2 :] = 0  # cosines of 1, sines of 0
    unread = torch.zeros_like(k[:, :1])
    rope_and_store(unread, k, v, identity, torch.zeros_like(slots), slots, cache)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last dimension: [T, H, D] with cos, sin [T, D/2], in float32.

    float64 inputs are rotated in float64: the truth for float32.
    """
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    out = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return out.to(x.dtype)
