"""The step that decode and prefill share: some queries, more keys."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend(
    q,  # [M, BLOCK_D]
    top,  # [M], largest score so far
    total,  # [M], sum of the exponentials
    acc,  # [M, BLOCK_D], sum of the values by those
    first,
    stop,
    oldest,
    position,  # [M], of each query
    k_ptr,
    v_ptr,
    table_ptr,
    scale,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Keys and values of the positions [first, stop), one head's, by online softmax.

    Nothing is read before `oldest`: windows leave pages behind. Without `MASKED`, every query
    sees every key and there are whole blocks of them.
    """
    column = tl.arange(0, BLOCK_D)
    for start in range(first, stop, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        if MASKED:
            exists = key < stop
            if WINDOW:
                exists &= key >= oldest
            page = tl.load(table_ptr + key // BLOCK_TOKENS, mask=exists, other=0)
        else:
            exists = key >= 0
            page = tl.load(table_ptr + key // BLOCK_TOKENS)
        token = page.to(tl.int64) * (KV_HEADS * BLOCK_TOKENS * D) + key % BLOCK_TOKENS * D
        k_mask, v_mask = (column < D)[:, None], (column < D)[None, :]
        if MASKED:
            k_mask &= exists[None, :]
            v_mask &= exists[:, None]
        k = tl.load(k_ptr + token[None, :] + column[:, None], mask=k_mask, other=0.0)
        scores = tl.dot(q, k, input_precision="ieee")
        if MASKED:
            sees = key[None, :] <= position[:, None]
            if WINDOW:
                sees &= key[None, :] > position[:, None] - WINDOW
            scores = tl.where(sees, scores, float("-inf"))
        top_now = tl.maximum(top, tl.max(scores, axis=1))
        shift = top_now * scale
        if WINDOW:
            shift = tl.where(top_now == float("-inf"), 0.0, shift)  # sees none of these yet
        weight = tl.exp2(scores * scale - shift[:, None])
        fade = tl.exp2(top * scale - shift)
        total = total * fade + tl.sum(weight, axis=1)
        v = tl.load(v_ptr + token[:, None] + column[None, :], mask=v_mask, other=0.0)
        acc = tl.dot(weight.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        top = top_now
    return top, total, acc
