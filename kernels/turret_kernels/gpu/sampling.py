"""Draws without a sort: the filters' threshold is searched for, pass after pass, on the GPU alone.

Everything works on blocks: at most 1024 logits of a row, and 256 blocks up to a vocabulary of 256k.
`block_stats_kernel` reads the logits once (4 V bytes per row) and keeps the maximum and the sum of
exponentials of every block; `draw_kernel`, one program per row, finds the block in which the draw
falls and reads that alone. This is all for rows without a filter, and for greedy ones.

What top-k and top-p keep is every logit above a threshold and the first few of those that equal it.
`narrow_kernel` brackets the threshold: a pass measures what lies above each of 16 pivots (a count
for top-k, a mass for top-p), and the next starts from the interval that holds the threshold, cut
down to the logits that occur in it. It takes 3 to 5 passes for either filter and 5 to 7 for both.
`weigh_kernel` sums what is kept, after a loop for the rows that need more passes than are launched.
A pass reads 4 V bytes, from the L2 cache where the batch's logits fit (70 rows of 128k in 50 MB),
and makes 16 V comparisons: 3 µs for a few rows, where launches and latency bound it, then some
0.2 µs per row of 128k. So a batch with filters takes 9 launches and, predicted, 30 µs up to 8 rows.

A program takes 2048 logits of a row, whatever the batch, and all partial sums are added up in one
order by whoever needs them: no atomics, no arrival counters, and a row's token does not depend on
the other rows. Nothing returns to the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.gpu.threshold_search import advance, measure, resume, store_state

_PART = 2048  # logits per program
_PASSES = 6
_PIVOTS = 16
_STATE = 9  # numbers: see threshold_search.begin


@triton.jit
def _settings(settings_ptr, row, V: tl.constexpr):
    """Of a row: 1 / temperature, top_k (0: off), top_p (1: off), min_p; all off if greedy."""
    temperature = tl.load(settings_ptr + row * 5).to(tl.float32)
    draws = temperature > 0
    top_k = tl.load(settings_ptr + row * 5 + 1)
    top_p = tl.load(settings_ptr + row * 5 + 2)
    min_p = tl.load(settings_ptr + row * 5 + 3).to(tl.float32)
    return (
        1.0 / tl.where(draws, temperature, 1.0),
        tl.where(draws & (top_k < V), top_k, 0.0),
        tl.where(draws, top_p, 1.0),
        tl.where(draws, min_p, 0.0),
    )


@triton.jit
def block_stats_kernel(
    maxima_ptr,  # float32 [R, BLOCKS]
    sums_ptr,  # float32 [R, BLOCKS]: of exp((x - block's maximum) / temperature)
    logits_ptr,  # float32 [R, V]
    settings_ptr,  # float64 [R, 5]
    stride,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """PART logits of one row per program."""
    row = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * (PART // BLOCK) + tl.arange(0, PART // BLOCK)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(logits_ptr + row * stride + column, mask=column < V, other=float("-inf"))
    inverse, _, _, _ = _settings(settings_ptr, row, V)
    top = tl.max(x, axis=1)
    base = tl.where(top == float("-inf"), 0.0, top)  # all banned
    total = tl.sum(tl.exp((x - base[:, None]) * inverse), axis=1)
    blocks: tl.constexpr = (V + BLOCK - 1) // BLOCK
    tl.store(maxima_ptr + row * blocks + block, top, mask=block < blocks)
    tl.store(sums_ptr + row * blocks + block, total, mask=block < blocks)


@triton.jit
def narrow_kernel(
    state_ptr,  # float64 [R, 9], written
    measured_ptr,  # float32 [R, PARTS, PIVOTS], written
    ends_ptr,  # float32 [R, PARTS, 2], written
    last_state_ptr,  # of the pass before, None in the first
    last_measured_ptr,
    last_ends_ptr,
    maxima_ptr,  # float32 [R, BLOCKS]
    sums_ptr,  # float32 [R, BLOCKS]
    logits_ptr,  # float32 [R, V]
    settings_ptr,  # float64 [R, 5]
    stride,
    V: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCKS_2: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_2: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """PART logits of one row per program; nothing for rows whose threshold is found."""
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    inverse, top_k, top_p, _ = _settings(settings_ptr, row, V)
    state = resume(
        last_state_ptr, last_measured_ptr, last_ends_ptr, maxima_ptr, sums_ptr,
        row, inverse, top_k, top_p, V, BLOCKS, BLOCKS_2, PARTS, PARTS_2, PIVOTS,
    )  # fmt: skip
    if part == 0:
        store_state(state_ptr, row, state)
    if state[0] > 0:
        column = part * PART + tl.arange(0, PART)
        x = tl.load(logits_ptr + row * stride + column, mask=column < V, other=float("-inf"))
        measured, first, last = measure(x, state, inverse, PIVOTS)
        at = row * PARTS + part
        tl.store(measured_ptr + at * PIVOTS + tl.arange(0, PIVOTS), measured)
        tl.store(ends_ptr + at * 2, first)
        tl.store(ends_ptr + at * 2 + 1, last)


@triton.jit
def weigh_kernel(
    kept_ptr,  # float32 [R, BLOCKS]: mass above the threshold, the likeliest token's being 1
    equals_ptr,  # float32 [R, BLOCKS]: how many equal it
    found_ptr,  # float64 [R, 2]: threshold; how many of its equals are kept
    last_state_ptr,  # None where no pass was made
    last_measured_ptr,
    last_ends_ptr,
    maxima_ptr,
    sums_ptr,
    logits_ptr,  # float32 [R, V]
    settings_ptr,  # float64 [R, 5]
    stride,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCKS_2: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_2: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """PART logits of one row per program; nothing for rows without a filter."""
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    inverse, top_k, top_p, min_p = _settings(settings_ptr, row, V)
    if (top_k > 0) | (top_p < 1) | (min_p > 0):
        state = resume(
            last_state_ptr, last_measured_ptr, last_ends_ptr, maxima_ptr, sums_ptr,
            row, inverse, top_k, top_p, V, BLOCKS, BLOCKS_2, PARTS, PARTS_2, PIVOTS,
        )  # fmt: skip
        while state[0] > 0:  # rare: every program of the row does the same
            total = tl.zeros((PIVOTS,), tl.float64)
            first = tl.full((), float("inf"), tl.float32)
            last = tl.full((), float("-inf"), tl.float32)
            for begin in range(0, V, 1024):
                column = begin + tl.arange(0, 1024)
                at = logits_ptr + row * stride + column
                x = tl.load(at, mask=column < V, other=float("-inf"))
                measured, least, most = measure(x, state, inverse, PIVOTS)
                total += measured.to(tl.float64)
                first, last = tl.minimum(first, least), tl.maximum(last, most)
            state = advance(state, total, first, last, inverse, top_p, PIVOTS)
        block = part * (PART // BLOCK) + tl.arange(0, PART // BLOCK)
        column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        x = tl.load(logits_ptr + row * stride + column, mask=column < V, other=float("-inf"))
        weight = tl.exp((x - state[8].to(tl.float32)) * inverse)
        weight = tl.where(weight >= min_p, weight, 0.0)
        threshold = state[3].to(tl.float32)
        kept = tl.sum(tl.where(x > threshold, weight, 0.0), axis=1)
        equals = tl.sum(tl.where((x == threshold) & (weight > 0), 1.0, 0.0), axis=1)
        at = row * BLOCKS + block
        tl.store(kept_ptr + at, kept, mask=block < BLOCKS)
        tl.store(equals_ptr + at, equals, mask=block < BLOCKS)
        if part == 0:
            tl.store(found_ptr + row * 2, state[3])
            tl.store(found_ptr + row * 2 + 1, state[7])


@triton.jit
def draw_kernel(
    tokens_ptr,  # int64 [R]
    kept_ptr,  # float32 [R, BLOCKS]; None where no row has a filter
    equals_ptr,
    found_ptr,
    maxima_ptr,
    sums_ptr,
    logits_ptr,  # float32 [R, V]
    settings_ptr,  # float64 [R, 5]
    stride,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCKS_2: tl.constexpr,
):
    """One row per program: the block of the token, then the token."""
    row = tl.program_id(0).to(tl.int64)
    inverse, top_k, top_p, min_p = _settings(settings_ptr, row, V)
    uniform = tl.load(settings_ptr + row * 5 + 4)
    index = tl.arange(0, BLOCKS_2)
    inside = index < BLOCKS
    at = row * BLOCKS + index
    maxima = tl.load(maxima_ptr + at, mask=inside, other=float("-inf"))
    top = tl.max(maxima, axis=0)
    column = tl.arange(0, BLOCK)
    logits = logits_ptr + row * stride + column
    if (tl.load(settings_ptr + row * 5) == 0) | (top == float("-inf")):
        block = tl.argmax(maxima, axis=0)  # of equals the first
        left = V - block * BLOCK
        x = tl.load(logits + block * BLOCK, mask=column < left, other=float("-inf"))
        token = block * BLOCK + tl.argmax(x, axis=0)
    else:
        sums = tl.load(sums_ptr + at, mask=inside, other=0.0)
        mass = (sums * tl.exp((maxima - top) * inverse)).to(tl.float64)
        threshold = tl.full((), float("-inf"), tl.float32)
        ties = tl.full((), 0.0, tl.float64)
        before = tl.zeros_like(sums)
        if kept_ptr is not None:  # noqa: SIM102 (decided when compiling)
            if (top_k > 0) | (top_p < 1) | (min_p > 0):
                threshold = tl.load(found_ptr + row * 2).to(tl.float32)
                ties = tl.load(found_ptr + row * 2 + 1)
                equals = tl.load(equals_ptr + at, mask=inside, other=0.0)
                before = tl.cumsum(equals, axis=0) - equals  # exact: below 2^24
                share = tl.minimum(tl.maximum(ties - before, 0.0), equals)
                weight = tl.exp((threshold - top) * inverse)
                mass = tl.load(kept_ptr + at, mask=inside, other=0.0).to(tl.float64)
                mass += share * weight.to(tl.float64)
        running = tl.cumsum(mass, axis=0)
        target = uniform * tl.sum(tl.where(index == BLOCKS - 1, running, 0.0), axis=0)
        past = tl.sum((running <= target).to(tl.int32), axis=0)
        block = tl.minimum(past, tl.max(tl.where(mass > 0, index, 0), axis=0))
        target -= tl.sum(tl.where(index == block, running - mass, 0.0), axis=0)
        ties -= tl.sum(tl.where(index == block, before, 0.0), axis=0)
        left = V - block * BLOCK
        x = tl.load(logits + block * BLOCK, mask=column < left, other=float("-inf"))
        weight = tl.exp((x - top) * inverse)
        weight = tl.where(weight >= min_p, weight, 0.0)
        equal = (x == threshold) & (weight > 0)
        first = equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= ties)
        weight = tl.where((x > threshold) | first, weight, 0.0)
        running = tl.cumsum(weight.to(tl.float64), axis=0)
        past = tl.sum((running <= target).to(tl.int32), axis=0)
        token = block * BLOCK
        token += tl.minimum(past, tl.max(tl.where(weight > 0, column, 0), axis=0))  # rounding
    tl.store(tokens_ptr + row, token.to(tl.int64))


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    """float32 [R, V] and a setting each per row -> int64 [R]; see turret_kernels.sampling.sample.

    Settings on the host are sent in one transfer, and tell how much there is to launch. Of settings
    on the GPU nothing is known: everything is launched, and rows without a filter leave early.
    """
    on_host = top_k.device.type == "cpu"
    searches = bool(((top_k > 0) | (top_p < 1)).any()) if on_host else True
    filters = searches or bool((min_p > 0).any())
    columns = (temperature, top_k, top_p, min_p, uniform)
    settings = gpu.to_device(torch.stack([c.double() for c in columns], 1), logits.device)
    return sample_settings(logits, settings, passes=_PASSES if searches else 0, filters=filters)


def sample_settings(logits: Tensor, settings: Tensor, passes: int, filters: bool) -> Tensor:
    """float32 [R, V], float64 [R, 5] -> int64 [R].

    Args:
        logits: the last dimension contiguous.
        settings: temperature, top_k, top_p, min_p, uniform.
        passes: how many are launched for top-k and top-p.
        filters: whether any row has a filter.
    """
    rows, vocab = logits.shape
    device = logits.device
    # At most 256 blocks, so that a program knows them all, if they need no more than 1024 logits.
    block = min(1024, max(128, triton.next_power_of_2(triton.cdiv(vocab, 256))))
    blocks, parts = triton.cdiv(vocab, block), triton.cdiv(vocab, _PART)
    stride = logits.stride(0)
    shape = {"V": vocab, "BLOCKS": blocks, "BLOCKS_2": triton.next_power_of_2(blocks)}
    cut = {"PARTS": parts, "PARTS_2": triton.next_power_of_2(parts)}
    cut |= {"PART": _PART, "PIVOTS": _PIVOTS}
    options = {"num_warps": 8, "enable_fp_fusion": True}

    stats = torch.empty((2, rows, blocks), dtype=torch.float32, device=device)
    inputs = (*stats, logits, settings, stride)
    block_stats_kernel[(parts, rows)](
        *inputs, V=vocab, BLOCK=block, PART=_PART, num_warps=4, enable_fp_fusion=True
    )
    kept = equals = found = None
    if filters:
        last = (None, None, None)
        for _ in range(passes):
            state = torch.empty((rows, _STATE), dtype=torch.float64, device=device)
            measured = torch.empty((rows, parts, _PIVOTS), dtype=torch.float32, device=device)
            ends = torch.empty((rows, parts, 2), dtype=torch.float32, device=device)
            this = (state, measured, ends)
            narrow_kernel[(parts, rows)](*this, *last, *inputs, **shape, **cut, **options)
            last = this
        kept = torch.empty((rows, blocks), dtype=torch.float32, device=device)
        equals = torch.empty((rows, blocks), dtype=torch.float32, device=device)
        found = torch.empty((rows, 2), dtype=torch.float64, device=device)
        weigh_kernel[(parts, rows)](
            kept, equals, found, *last, *inputs, BLOCK=block, **shape, **cut, **options
        )
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    draw_kernel[(rows,)](
        tokens, kept, equals, found, *inputs, BLOCK=block, **shape, num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
    return tokens
