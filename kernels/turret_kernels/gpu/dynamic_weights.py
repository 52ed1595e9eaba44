"""The search for dynamic fusion weights: 8 candidates per pass, all requests and experts at once.

The loss and its two KLs are explained in `turret_kernels/dynamic_weights.py`. Every expert has a
search, which reads three rows. `moments_kernel` reads them for the KLs of the expert against its
base (12 V bytes); five times `search_kernel` reads them again, from the L2 cache where they fit,
and sums exp(l + a d) and exp(l + a d) d for 8 values of a. The first pass spreads these over
[0, limit], the second and third between the last value left of both roots and the first right of
both, the others around the best so far: that resolves the weight to 1/180 of the distance of the
roots. `weights_kernel` lets the best expert of a request act.

8 V exponentials per pass take as long as 12 V bytes from memory. Predicted: 3 µs per pass for a few
searches of 128k, where launches bound it, 25 µs in all.

A program takes 2048 tokens of a search, whatever the batch, and its sums are added up in one order
by whoever needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from turret_kernels.fusion import Members

_PART = 2048
_PASSES = 5
_CANDIDATES = 8


@triton.jit
def _rows(
    logits_ptr, row_ptr, temperature_ptr, first, member, part, stride,
    V: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Large, base and expert of a search, -inf where one of them bans; and expert - base."""
    token = part * PART + tl.arange(0, PART)
    large = _row(logits_ptr, row_ptr, temperature_ptr, first, token, stride, V)
    base = _row(logits_ptr, row_ptr, temperature_ptr, first + 1, token, stride, V)
    expert = _row(logits_ptr, row_ptr, temperature_ptr, member, token, stride, V)
    known = tl.minimum(tl.minimum(large, base), expert) > float("-inf")
    return (
        tl.where(known, large, float("-inf")),
        tl.where(known, base, float("-inf")),
        tl.where(known, expert, float("-inf")),
        tl.where(known, expert - base, 0.0),
    )


@triton.jit
def _row(logits_ptr, row_ptr, temperature_ptr, member, token, stride, V: tl.constexpr):
    row = tl.load(row_ptr + member).to(tl.int64)
    x = tl.load(logits_ptr + row * stride + token, mask=token < V, other=float("-inf"))
    return x / tl.load(temperature_ptr + member)


@triton.jit
def moments_kernel(
    moments_ptr,  # float32 [M, 9, PARTS]: maximum, sum of e, sum of e d; large, base, expert
    logits_ptr,  # float32 [R, V]
    first_ptr,  # int32 [Q + 1]
    request_ptr,  # int32 [M]
    row_ptr,  # int32 [M]
    temperature_ptr,  # float32 [M]
    limit_ptr,  # float32 [Q]
    stride,
    V: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
):
    """PART tokens of one expert per program; nothing for other members."""
    part, member = tl.program_id(0), tl.program_id(1)
    request = tl.load(request_ptr + member)
    first = tl.load(first_ptr + request)
    if (tl.load(limit_ptr + request) > 0) & (member >= first + 2):
        large, base, expert, d = _rows(
            logits_ptr, row_ptr, temperature_ptr, first, member, part, stride, V, PART
        )
        out = moments_ptr + member * 9 * PARTS + part
        _store_moments(out, large, d, PARTS)
        _store_moments(out + 3 * PARTS, base, d, PARTS)
        _store_moments(out + 6 * PARTS, expert, d, PARTS)


@triton.jit
def _store_moments(out, x, d, PARTS: tl.constexpr):
    top = tl.max(x, axis=0)
    e = tl.exp(x - tl.where(top == float("-inf"), 0.0, top))
    tl.store(out, top)
    tl.store(out + PARTS, tl.sum(e, axis=0))
    tl.store(out + 2 * PARTS, tl.sum(e * d, axis=0))


@triton.jit
def _expect(moments_ptr, PARTS: tl.constexpr, PARTS_2: tl.constexpr):
    """log sum exp(x), and the mean of d under softmax(x); float64."""
    part = tl.arange(0, PARTS_2)
    mask = part < PARTS
    tops = tl.load(moments_ptr + part, mask=mask, other=float("-inf")).to(tl.float64)
    sums = tl.load(moments_ptr + PARTS + part, mask=mask, other=0.0).to(tl.float64)
    firsts = tl.load(moments_ptr + 2 * PARTS + part, mask=mask, other=0.0).to(tl.float64)
    top = tl.max(tops, axis=0)
    scale = tl.exp((tops - top).to(tl.float32)).to(tl.float64)
    total = tl.sum(sums * scale, axis=0)
    return top + tl.log(total), tl.sum(firsts * scale, axis=0) / total


@triton.jit
def _begin(moments_ptr, first, end, member, limit, PARTS: tl.constexpr, PARTS_2: tl.constexpr):
    """The state in which a search begins, all of it float64.

    low, high: where the next candidates lie.
    best, loss: the best so far.
    forward, back: the mean over the experts of KL(Q_t || Q) and KL(Q || Q_t).
    log_p: log sum exp of the large model's logits.
    offset, mean: of d = expert - base: log Q_t - log Q = d - offset; mean = E_P[d].
    """
    forward = tl.full((), 0.0, tl.float64)
    back = tl.full((), 0.0, tl.float64)
    for other in range(first + 2, end):
        moments = moments_ptr + other * 9 * PARTS
        log_q, mean_q = _expect(moments + 3 * PARTS, PARTS, PARTS_2)
        log_t, mean_t = _expect(moments + 6 * PARTS, PARTS, PARTS_2)
        forward += tl.maximum(mean_t - (log_t - log_q), 0.0)
        back += tl.maximum(log_t - log_q - mean_q, 0.0)
    count = (end - first - 2).to(tl.float64)
    log_p, mean = _expect(moments_ptr + member * 9 * PARTS, PARTS, PARTS_2)
    forward, back = forward / count, back / count
    zero = tl.full((), 0.0, tl.float64)
    loss = forward * forward + back * back
    return zero, limit.to(tl.float64), zero, loss, forward, back, log_p, mean


@triton.jit
def _candidates(low, high, index, CANDIDATES: tl.constexpr):
    """Of pass `index`: evenly between low and high, at first with high."""
    step = tl.arange(0, CANDIDATES).to(tl.float64) + 1
    return low + (high - low) * step / tl.where(index == 0, CANDIDATES, CANDIDATES + 1)


@triton.jit
def _load_state(state_ptr, member):
    state = state_ptr + member * 8
    return (
        tl.load(state),
        tl.load(state + 1),
        tl.load(state + 2),
        tl.load(state + 3),
        tl.load(state + 4),
        tl.load(state + 5),
        tl.load(state + 6),
        tl.load(state + 7),
    )


@triton.jit
def _store_state(state_ptr, member, state):
    tl.store(state_ptr + member * 8, state[0])
    tl.store(state_ptr + member * 8 + 1, state[1])
    tl.store(state_ptr + member * 8 + 2, state[2])
    tl.store(state_ptr + member * 8 + 3, state[3])
    tl.store(state_ptr + member * 8 + 4, state[4])
    tl.store(state_ptr + member * 8 + 5, state[5])
    tl.store(state_ptr + member * 8 + 6, state[6])
    tl.store(state_ptr + member * 8 + 7, state[7])


@triton.jit
def _after(
    state_ptr, sums_ptr, member, index,
    PARTS: tl.constexpr, PARTS_2: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """The state that pass `index` led to, the same in every program that asks."""
    low, high, best, loss, forward, back, log_p, mean = _load_state(state_ptr, member)
    a = _candidates(low, high, index, CANDIDATES)
    part = tl.arange(0, PARTS_2)[:, None]
    at = sums_ptr + (member * PARTS + part) * (3 * CANDIDATES)
    at += tl.arange(0, CANDIDATES)[None, :]
    tops = tl.load(at, mask=part < PARTS, other=float("-inf")).to(tl.float64)
    sums = tl.load(at + CANDIDATES, mask=part < PARTS, other=0.0).to(tl.float64)
    firsts = tl.load(at + 2 * CANDIDATES, mask=part < PARTS, other=0.0).to(tl.float64)
    top = tl.max(tops, axis=0)
    scale = tl.exp((tops - top[None, :]).to(tl.float32)).to(tl.float64)
    total = tl.sum(sums * scale, axis=0)
    phi = top + tl.log(total)  # of d without its mean
    slope = tl.sum(firsts * scale, axis=0) / total
    one, two = a * slope - phi - forward, phi - back
    losses = one * one + two * two
    least = tl.min(losses, axis=0)
    better = least < loss
    best = tl.where(better, tl.min(tl.where(losses == least, a, high), axis=0), best)
    # The two brackets, at first; then the neighbours of the best.
    left = tl.where(index < 2, tl.maximum(one, two), a - best) < 0
    right = tl.where(index < 2, tl.minimum(one, two), a - best) > 0
    low = tl.maximum(low, tl.max(tl.where(left, a, low), axis=0))
    high = tl.minimum(high, tl.min(tl.where(right, a, high), axis=0))
    return low, high, best, tl.minimum(least, loss), forward, back, log_p, mean


@triton.jit(do_not_specialize=["index"])
def search_kernel(
    state_ptr,  # float64 [M, 8], written
    sums_ptr,  # float32 [M, PARTS, 3, CANDIDATES], written: maximum, sum of e, sum of e d
    last_state_ptr,  # of the pass before, None in the first
    last_sums_ptr,
    moments_ptr,  # float32 [M, 9, PARTS]
    logits_ptr,  # float32 [R, V]
    first_ptr,  # int32 [Q + 1]
    request_ptr,  # int32 [M]
    row_ptr,  # int32 [M]
    temperature_ptr,  # float32 [M]
    limit_ptr,  # float32 [Q]
    stride,
    index,
    V: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_2: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """PART tokens of one expert per program; nothing for other members."""
    part, member = tl.program_id(0), tl.program_id(1)
    request = tl.load(request_ptr + member)
    first, end = tl.load(first_ptr + request), tl.load(first_ptr + request + 1)
    limit = tl.load(limit_ptr + request)
    if (limit > 0) & (member >= first + 2):
        if last_state_ptr is None:
            state = _begin(moments_ptr, first, end, member, limit, PARTS, PARTS_2)
        else:
            state = _after(
                last_state_ptr, last_sums_ptr, member, index - 1, PARTS, PARTS_2, CANDIDATES
            )
        if part == 0:
            _store_state(state_ptr, member, state)
        large, _, _, d = _rows(
            logits_ptr, row_ptr, temperature_ptr, first, member, part, stride, V, PART
        )
        a = _candidates(state[0], state[1], index, CANDIDATES).to(tl.float32)
        d -= state[7].to(tl.float32)
        z = (large - state[6].to(tl.float32))[None, :] + a[:, None] * d[None, :]
        top = tl.max(z, axis=1)
        e = tl.exp(z - tl.where(top == float("-inf"), 0.0, top)[:, None])
        at = sums_ptr + (member * PARTS + part) * (3 * CANDIDATES)
        at += tl.arange(0, CANDIDATES)
        tl.store(at, top)
        tl.store(at + CANDIDATES, tl.sum(e, axis=1))
        tl.store(at + 2 * CANDIDATES, tl.sum(e * d[None, :], axis=1))


@triton.jit(do_not_specialize=["index"])
def weights_kernel(
    out_ptr,  # float32 [M]
    state_ptr,  # float64 [M, 8], of the last pass
    sums_ptr,  # float32 [M, PARTS, 3, CANDIDATES]
    first_ptr,  # int32 [Q + 1]
    weight_ptr,  # float32 [M]
    limit_ptr,  # float32 [Q]
    index,
    PARTS: tl.constexpr,
    PARTS_2: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """One request per program."""
    request = tl.program_id(0)
    first, end = tl.load(first_ptr + request), tl.load(first_ptr + request + 1)
    if tl.load(limit_ptr + request) > 0:
        acts, least = first, tl.full((), float("inf"), tl.float64)
        weight = tl.full((), 0.0, tl.float64)
        for member in range(first + 2, end):
            state = _after(state_ptr, sums_ptr, member, index, PARTS, PARTS_2, CANDIDATES)
            better = state[3] < least
            acts = tl.where(better, member, acts)
            weight = tl.where(better, state[2], weight)
            least = tl.minimum(least, state[3])
        tl.store(out_ptr + first, 1.0)
        tl.store(out_ptr + first + 1, -weight.to(tl.float32))
        for member in range(first + 2, end):
            tl.store(out_ptr + member, tl.where(member == acts, weight, 0.0).to(tl.float32))
    else:
        for member in range(first, end):
            tl.store(out_ptr + member, tl.load(weight_ptr + member))


def dynamic_weights(logits: Tensor, members: Members, passes: int = _PASSES) -> Tensor:
    """float32 [R, V], the last dimension contiguous -> float32 [M]."""
    vocab, device = logits.shape[1], logits.device
    count, parts = len(members.row), triton.cdiv(vocab, _PART)
    tables = (members.first, members.request, members.row, members.temperature, members.limit)
    inputs = (logits, *tables, logits.stride(0))
    cut = {"PARTS": parts, "PARTS_2": triton.next_power_of_2(parts), "CANDIDATES": _CANDIDATES}
    options = {"num_warps": 8, "enable_fp_fusion": True}

    moments = torch.empty((count, 9, parts), dtype=torch.float32, device=device)
    moments_kernel[(parts, count)](
        moments,
        *inputs,
        V=vocab,
        PART=_PART,
        PARTS=parts,
        num_warps=4,
        enable_fp_fusion=True,
    )
    last = (None, None)
    for i in range(passes):
        state = torch.empty((count, 8), dtype=torch.float64, device=device)
        sums = torch.empty((count, parts, 3, _CANDIDATES), dtype=torch.float32, device=device)
        search_kernel[(parts, count)](
            state, sums, *last, moments, *inputs, i, V=vocab, PART=_PART, **cut, **options
        )
        last = (state, sums)
    weights = torch.empty(count, dtype=torch.float32, device=device)
    weights_kernel[(len(members.limit),)](
        weights,
        *last,
        members.first,
        members.weight,
        members.limit,
        passes - 1,
        **cut,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return weights
