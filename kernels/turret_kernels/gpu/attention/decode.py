"""Sequences with one row in the step: splits side by side, and their sum."""

from __future__ import annotations

import triton
import triton.language as tl

from turret_kernels.gpu.attention.softmax import attend


@triton.jit(do_not_specialize=["sequences"])
def decode_attention_kernel(
    out_ptr,  # [T, KV_HEADS * G * D], contiguous
    q_ptr,  # [T, KV_HEADS * G, D]
    q_stride,
    k_ptr,  # [pages, KV_HEADS, BLOCK_TOKENS, D]
    v_ptr,
    query_start_ptr,  # int32 [S + 1]
    context_len_ptr,  # int32 [S]
    table_ptr,  # int32 [S, max_blocks]
    table_stride,
    sequences,
    scale,  # of the scores, in powers of two
    partial_ptr,  # float32 [S, KV_HEADS, SPLITS, G, D]
    partial_stats_ptr,  # float32 [S, KV_HEADS, SPLITS, 2, G]: maxima and sums
    arrivals_ptr,  # int32 [S * KV_HEADS], 0 before and after
    KV_HEADS: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    SEQUENCES: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Splits of sequences with one row, one key head at a time, as many as there are programs for.

    The splits are counted here, from the contexts of this step: a grid for the longest would be
    mostly idle, and a recorded one always that.
    """
    total = 0
    for start in range(0, sequences, SEQUENCES):
        s = start + tl.arange(0, SEQUENCES)
        total += tl.sum(
            _count_splits(
                s, sequences, query_start_ptr, context_len_ptr, WINDOW, SPLIT, SPLITS, BLOCK_N
            )
        )
    r, column = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_D)[None, :]
    g = tl.arange(0, BLOCK_M)
    mask = (r < G) & (column < D)
    for item in tl.range(tl.program_id(0), total * KV_HEADS, tl.num_programs(0), disable_licm=True):
        head, place = item % KV_HEADS, item // KV_HEADS
        # Whose split this is, and which.
        sequence, before, end = 0, 0, 0
        for start in range(0, sequences, SEQUENCES):
            s = start + tl.arange(0, SEQUENCES)
            count = _count_splits(
                s, sequences, query_start_ptr, context_len_ptr, WINDOW, SPLIT, SPLITS, BLOCK_N
            )
            is_before = end + tl.cumsum(count) <= place
            sequence += tl.sum(is_before.to(tl.int32))
            before += tl.sum(tl.where(is_before, count, 0))
            end += tl.sum(count)
        context = tl.load(context_len_ptr + sequence)
        row = tl.load(query_start_ptr + sequence).to(tl.int64)
        oldest, first, length, splits = _splits(context, WINDOW, SPLIT, SPLITS, BLOCK_N)
        split = place - before
        begin = first + split * length

        offset = (head * G + r) * D + column
        q = tl.load(q_ptr + row * q_stride + offset, mask=mask, other=0.0)
        top, total_weight, acc = attend(
            q,
            tl.full([BLOCK_M], float("-inf"), tl.float32),
            tl.zeros([BLOCK_M], tl.float32),
            tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
            begin,
            tl.minimum(begin + length, context),
            oldest,
            tl.full([BLOCK_M], context - 1, tl.int32),
            k_ptr + head * (BLOCK_TOKENS * D),
            v_ptr + head * (BLOCK_TOKENS * D),
            table_ptr + sequence.to(tl.int64) * table_stride,
            scale,
            KV_HEADS,
            D,
            BLOCK_TOKENS,
            WINDOW,
            BLOCK_N,
            BLOCK_D,
            True,
        )
        out = out_ptr + row * (KV_HEADS * G * D)
        if splits == 1:
            tl.store(out + offset, (acc / total_weight[:, None]).to(q.dtype), mask=mask)
        else:
            group = sequence.to(tl.int64) * KV_HEADS + head
            part = group * SPLITS + split
            tl.store(partial_ptr + (part * G + r) * D + column, acc, mask=mask)
            tl.store(partial_stats_ptr + part * (2 * G) + g, top * scale, mask=g < G)
            tl.store(partial_stats_ptr + part * (2 * G) + G + g, total_weight, mask=g < G)
            # All stores of this program, then its arrival: triton 3.6 has no barrier of its own.
            tl.debug_barrier()
            if tl.atomic_add(arrivals_ptr + group, 1, sem="acq_rel") == splits - 1:
                tl.store(arrivals_ptr + group, 0)
                _merge(
                    out + head * (G * D),
                    partial_ptr,
                    partial_stats_ptr,
                    group * SPLITS,
                    splits,
                    G,
                    D,
                    BLOCK_G,
                    BLOCK_D,
                    PARTS,
                )


@triton.jit
def _count_splits(
    s,
    sequences,
    query_start_ptr,
    context_len_ptr,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Of the sequences `s`; none where there is no sequence, or more than one row of it."""
    mask = s < sequences
    context = tl.load(context_len_ptr + s, mask=mask, other=0)
    start = tl.load(query_start_ptr + s, mask=mask, other=0)
    stop = tl.load(query_start_ptr + s + 1, mask=mask, other=0)
    _, _, _, splits = _splits(context, WINDOW, SPLIT, SPLITS, BLOCK_N)
    return tl.where(stop - start == 1, splits, 0)


@triton.jit
def _splits(
    context,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Oldest position that a decode sees; first position, length and number of its splits.

    At most SPLITS of SPLIT tokens, or as many of more.
    """
    oldest = tl.maximum(context - WINDOW, 0) if WINDOW else context * 0
    first = oldest // BLOCK_N * BLOCK_N
    length = tl.cdiv(tl.cdiv(context - first, SPLITS), BLOCK_N) * BLOCK_N
    length = tl.maximum(length, SPLIT)
    return oldest, first, length, tl.cdiv(context - first, length)


@triton.jit
def _merge(
    out_ptr,  # [G, D]
    partial_ptr,
    partial_stats_ptr,
    base,
    splits,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Add up all splits of a key head, in their order, PARTS at once."""
    g, column = tl.arange(0, BLOCK_G)[None, :], tl.arange(0, BLOCK_D)[None, None, :]
    top = tl.full([BLOCK_G], -1e30, tl.float32)  # an infinity would make NaN where there is no head
    total, acc = tl.zeros([BLOCK_G], tl.float32), tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for start in range(0, splits, PARTS):
        split = start + tl.arange(0, PARTS)[:, None]
        part, mask = base + split, (split < splits) & (g < G)
        # Other processors wrote these: from L2.
        stats = partial_stats_ptr + part * (2 * G) + g
        tops = tl.load(stats, mask=mask, other=-1e30, cache_modifier=".cg")
        totals = tl.load(stats + G, mask=mask, other=1.0, cache_modifier=".cg")
        values = tl.load(
            partial_ptr + (part * (G * D) + g * D)[:, :, None] + column,
            mask=mask[:, :, None] & (column < D),
            other=0.0,
            cache_modifier=".cg",
        )
        top_now = tl.maximum(top, tl.max(tops, axis=0))
        weight, fade = tl.exp2(tops - top_now[None, :]), tl.exp2(top - top_now)
        total = total * fade + tl.sum(totals * weight, axis=0)
        acc = acc * fade[:, None] + tl.sum(values * weight[:, :, None], axis=0)
        top = top_now
    y = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    place = tl.arange(0, BLOCK_G)[:, None] * D + tl.arange(0, BLOCK_D)[None, :]
    mask = (tl.arange(0, BLOCK_G) < G)[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
    tl.store(out_ptr + place, y, mask=mask)
