"""Token masks of grammars: 32 tokens per word.

Bytes: 8 V per masked row (what is allowed is written back: whole 16-byte stores, where a mask per
element would make them 4 bytes), and V / 8 for the mask. 0.4 µs for one row of 128k, so a launch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_WORDS = 32  # per program


@triton.jit
def apply_token_mask_kernel(
    logits_ptr,  # float32 [R, V], changed in place
    rows_ptr,  # int32 [M]; -1: none
    mask_ptr,  # int32 [M, ceil(V / 32)]
    stride,
    mask_stride,
    V: tl.constexpr,
    WORDS: tl.constexpr,
):
    """WORDS * 32 logits of one row per program."""
    index = tl.program_id(1).to(tl.int64)
    row = tl.load(rows_ptr + index).to(tl.int64)
    if row >= 0:
        word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
        bit = tl.arange(0, 32)
        words = tl.load(mask_ptr + index * mask_stride + word, mask=word * 32 < V, other=0)
        token = word[:, None] * 32 + bit[None, :]
        at = logits_ptr + row * stride + token
        x = tl.load(at, mask=token < V, other=0.0)
        allowed = ((words[:, None] >> bit[None, :]) & 1) != 0
        tl.store(at, tl.where(allowed, x, float("-inf")), mask=token < V)


def apply_token_mask(logits: Tensor, rows: Tensor, mask: Tensor) -> None:
    """float32 [R, V]; int32 [M]; int32 [M, ceil(V / 32)]; last dimensions contiguous."""
    vocab, count = logits.shape[1], rows.shape[0]
    apply_token_mask_kernel[(triton.cdiv(vocab, 32 * _WORDS), count)](
        logits,
        rows,
        mask,
        logits.stride(0),
        mask.stride(0),
        V=vocab,
        WORDS=_WORDS,
        num_warps=4,
        enable_fp_fusion=True,
    )
