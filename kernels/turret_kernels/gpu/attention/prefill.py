"""Sequences with several rows in the step, a tile of queries per program."""

from __future__ import annotations

import triton
import triton.language as tl

from turret_kernels.gpu.attention.softmax import attend


@triton.jit(do_not_specialize=["sequences"])
def prefill_attention_kernel(
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
    KV_HEADS: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    SEQUENCES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of queries, with all heads of one key head; grid [KV_HEADS, T // QUERIES + S].

    Sequence s has tiles from `query_start[s] // QUERIES + s` on: enough of them whatever the
    lengths, and which is whose needs no table.
    """
    QUERIES: tl.constexpr = BLOCK_M // G
    # The last first: of one sequence, that with the most keys.
    head, tile = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    sequence = -1
    for first in range(0, sequences, SEQUENCES):
        s = first + tl.arange(0, SEQUENCES)
        start = tl.load(query_start_ptr + s, mask=s < sequences, other=0)
        sequence += tl.sum(((start // QUERIES + s <= tile) & (s < sequences)).to(tl.int32))
    begin = tl.load(query_start_ptr + sequence)
    rows = tl.load(query_start_ptr + sequence + 1) - begin
    skipped = (tile - begin // QUERIES - sequence) * QUERIES
    if (rows <= 1) | (skipped >= rows):
        return
    count = tl.minimum(rows - skipped, QUERIES)
    place = tl.load(context_len_ptr + sequence) - rows + skipped  # position of the first query

    r, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)[None, :]
    mask = (r < count * G)[:, None] & (column < D)
    row = (begin + skipped).to(tl.int64)
    # Within the tile 32 bits suffice, and half the registers.
    offset = (r // G * q_stride + r % G * D)[:, None] + column
    q = tl.load(q_ptr + row * q_stride + head * (G * D) + offset, mask=mask, other=0.0)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # Rows without a query see what the last one sees: no NaN.
    position = tl.minimum(place + r // G, place + count - 1)
    k_ptr += head * (BLOCK_TOKENS * D)
    v_ptr += head * (BLOCK_TOKENS * D)
    table_ptr += sequence.to(tl.int64) * table_stride
    stop = place + count
    if WINDOW:
        oldest = tl.maximum(place + 1 - WINDOW, 0)
        first = oldest // BLOCK_N * BLOCK_N
    else:
        oldest = 0
        first = (place + 1) // BLOCK_N * BLOCK_N  # below, every query sees every key
        top, total, acc = attend(
            q,
            top,
            total,
            acc,
            0,
            first,
            oldest,
            position,
            k_ptr,
            v_ptr,
            table_ptr,
            scale,
            KV_HEADS,
            D,
            BLOCK_TOKENS,
            WINDOW,
            BLOCK_N,
            BLOCK_D,
            False,
        )
    top, total, acc = attend(
        q,
        top,
        total,
        acc,
        first,
        stop,
        oldest,
        position,
        k_ptr,
        v_ptr,
        table_ptr,
        scale,
        KV_HEADS,
        D,
        BLOCK_TOKENS,
        WINDOW,
        BLOCK_N,
        BLOCK_D,
        True,
    )
    y = (acc / total[:, None]).to(q.dtype)
    out_ptr += row * (KV_HEADS * G * D) + head * (G * D)
    offset = (r // G * (KV_HEADS * G * D) + r % G * D)[:, None] + column
    tl.store(out_ptr + offset, y, mask=mask)
