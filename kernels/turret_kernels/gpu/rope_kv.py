"""RoPE and the write of keys and values into their pages, in one kernel.

Bytes: 4 D per head of D 16-bit values: q is read and written in place, k and v are read here and
written into their pages; the table adds 4 D per token, from L2. k is not written back.

A page is [kv_heads, block_tokens, D], so what a head's attention reads of it is contiguous; a token
writes one row of D (256 bytes at 128) per head: full sectors.

A program takes one token and eight heads, of q or of k and v. Both halves of a head lie in one
thread, 16 bytes of each, so rotating needs no exchange.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_HEADS = 8


@triton.jit
def rope_and_store_kernel(
    q_ptr,  # [T, Q_HEADS, D], rotated in place
    k_ptr,  # [T, KV_HEADS, D]
    v_ptr,  # [T, KV_HEADS, D]
    q_stride,
    k_stride,
    v_stride,
    cos_sin_ptr,  # float32 [positions, D]
    positions_ptr,  # int64 [T]
    slots_ptr,  # int64 [T]
    k_cache_ptr,  # [blocks, KV_HEADS, BLOCK_TOKENS, D]
    v_cache_ptr,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """HEADS heads of one token per program: first those of q, then those of k and v."""
    HALF: tl.constexpr = D // 2
    Q_PROGRAMS: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position, slot = tl.load(positions_ptr + token), tl.load(slots_ptr + token)
    head = tl.arange(0, HEADS)[:, None]
    # Every head asks for the angles itself, wide and from L1: sharing them takes barriers.
    column = tl.broadcast_to(tl.arange(0, BLOCK_HALF)[None, :], (HEADS, BLOCK_HALF))
    mask = column < HALF
    cos = tl.load(cos_sin_ptr + position * D + column, mask=mask, other=0.0)
    sin = tl.load(cos_sin_ptr + position * D + HALF + column, mask=mask, other=0.0)
    if part < Q_PROGRAMS:
        head += part * HEADS
        mask &= head < Q_HEADS
        q = q_ptr + token * q_stride + head * D + column
        first, second = _rotated(q, cos, sin, mask, HALF)
        tl.store(q, first, mask=mask)
        tl.store(q + HALF, second, mask=mask)
    else:
        head += (part - Q_PROGRAMS) * HEADS
        mask &= head < KV_HEADS
        offset = head * D + column
        first, second = _rotated(k_ptr + token * k_stride + offset, cos, sin, mask, HALF)
        v = v_ptr + token * v_stride + offset
        v_first = tl.load(v, mask=mask, other=0.0)
        v_second = tl.load(v + HALF, mask=mask, other=0.0)
        row = (slot // BLOCK_TOKENS * KV_HEADS + head) * BLOCK_TOKENS + slot % BLOCK_TOKENS
        place = row * D + column
        tl.store(k_cache_ptr + place, first, mask=mask)
        tl.store(k_cache_ptr + place + HALF, second, mask=mask)
        tl.store(v_cache_ptr + place, v_first, mask=mask)
        tl.store(v_cache_ptr + place + HALF, v_second, mask=mask)


@triton.jit
def _rotated(x_ptr, cos, sin, mask, HALF: tl.constexpr):
    """Both halves of the heads at `x_ptr`, rotated in float32."""
    first = tl.load(x_ptr, mask=mask, other=0.0)
    second = tl.load(x_ptr + HALF, mask=mask, other=0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    return (a * cos - b * sin).to(first.dtype), (b * cos + a * sin).to(first.dtype)


def rope_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> None:
    """Arguments as in `turret_kernels.rope_kv.rope_and_store`; the heads of a token adjoin."""
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    half = triton.next_power_of_2(dim // 2)
    programs = triton.cdiv(heads, _HEADS) + triton.cdiv(kv_heads, _HEADS)
    rope_and_store_kernel[(tokens, programs)](
        q,
        k,
        v,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        cos_sin,
        positions,
        slots,
        k_cache,
        v_cache,
        Q_HEADS=heads,
        KV_HEADS=kv_heads,
        D=dim,
        BLOCK_TOKENS=k_cache.shape[2],
        HEADS=_HEADS,
        BLOCK_HALF=half,
        num_warps=max(1, _HEADS * half // 256),
        enable_fp_fusion=True,
    )
