"""The search for the value down to which a filter keeps: its state, and what a pass does to it.

A state is what `begin` describes. `measure` looks at a part of a row, `advance` says what all parts
together lead to, and `resume` where a program finds itself. No launches: see `sampling.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def begin(
    maxima_ptr,
    sums_ptr,
    row,
    inverse,
    top_k,
    top_p,
    V,
    BLOCKS: tl.constexpr,
    BLOCKS_2: tl.constexpr,
):
    """The state in which the search of a row begins, all of it float64.

    phase: 0 found, 1 top-k, 2 top-p after top-k, whose mass is still to be measured, 3 top-p.
    least: top-k's threshold, in phases 2 and 3; -inf without top-k.
    low, high: the threshold lies above low and not above high; once it is found, it is high.
    start: the first pivot of the next pass.
    above: the measure of what lies above high.
    target: the threshold is the first value, from above, with which the measure reaches this.
    ties: how many logits that equal the threshold are kept; in phases 2 and 3, of top-k's.
    top: the largest logit.
    """
    block = tl.arange(0, BLOCKS_2)
    inside = block < BLOCKS
    maxima = tl.load(maxima_ptr + row * BLOCKS + block, mask=inside, other=float("-inf"))
    sums = tl.load(sums_ptr + row * BLOCKS + block, mask=inside, other=0.0)
    top = tl.max(maxima, axis=0)
    some = top != float("-inf")  # else all are banned
    phase = tl.where(some & (top_k > 0), 1.0, tl.where(some & (top_p < 1), 3.0, 0.0))
    base = tl.where(some, top, 0.0)
    mass = tl.sum((sums * tl.exp((maxima - base) * inverse)).to(tl.float64), axis=0)
    # Where to look first. For top-k: few logits lie above the maximum of every block. For top-p:
    # tokens below (1 - p) / V of the mass weigh less than 1 - p together.
    seen = tl.min(tl.where(maxima > float("-inf"), maxima, float("inf")), axis=0)
    share = tl.maximum((1 - top_p) / V * mass, 1e-30).to(tl.float32)
    floor = tl.minimum(base + tl.log(share) / inverse, base)
    lowest = tl.full((), float("-inf"), tl.float64)
    return (
        phase.to(tl.float64),
        lowest,
        lowest,
        tl.where(phase > 0, top, float("-inf")).to(tl.float64),
        tl.where(top_k > 0, seen, floor).to(tl.float64),
        tl.full((), 0.0, tl.float64),
        tl.where(top_k > 0, top_k, top_p * mass),
        tl.full((), 0.0, tl.float64),
        base.to(tl.float64),
    )


@triton.jit
def _pivots(state, PIVOTS: tl.constexpr):
    """From `start` on, evenly, below `high`."""
    part = tl.arange(0, PIVOTS).to(tl.float32) / PIVOTS
    return state[4].to(tl.float32) * (1 - part) + state[3].to(tl.float32) * part


@triton.jit
def measure(x, state, inverse, PIVOTS: tl.constexpr):
    """Of some logits: what lies above each pivot; the least above low, the largest up to high."""
    least, low, high = state[1].to(tl.float32), state[2].to(tl.float32), state[3].to(tl.float32)
    pivots = _pivots(state, PIVOTS)
    weight = tl.where(state[0] == 1, 1.0, tl.exp((x - state[8].to(tl.float32)) * inverse))
    above = tl.sum(tl.where(x[None, :] > pivots[:, None], weight[None, :], 0.0), axis=1)
    first = tl.min(tl.where((x > low) & (x >= least), x, float("inf")), axis=0)
    last = tl.max(tl.where(x <= high, x, float("-inf")), axis=0)
    return above, first, last


@triton.jit
def advance(state, measured, first, last, inverse, top_p, PIVOTS: tl.constexpr):
    """The state after a pass over the row that measured this; float64 [PIVOTS], float32."""
    phase, least, low, high, _, above, target, ties, top = state
    pivots = _pivots(state, PIVOTS).to(tl.float64)
    first, last = first.to(tl.float64), last.to(tl.float64)
    # What top-k kept: all above its threshold, the first pivot of phase 2, and some that equal it.
    equal = tl.exp((tl.where(phase == 2, least, top) - top).to(tl.float32) * inverse)
    kept = tl.max(measured, axis=0) + ties * equal.to(tl.float64)
    target = tl.where(phase == 2, top_p * kept, target)

    # One value is left, or none, if rounding hides that all are kept.
    none, found = first > last, first >= last
    threshold = tl.where(none, high, last)
    weight = tl.exp((threshold - top).to(tl.float32) * inverse).to(tl.float64)
    share = tl.where(phase == 1, target - above, tl.ceil((target - above) / weight))
    # No more than top-k kept, whatever the sums' rounding says.
    share = tl.where((phase != 1) & (threshold == least), tl.minimum(share, ties), share)
    share = tl.where(none, 0.0, share)
    again = found & (phase == 1) & (top_p < 1)

    under = measured < target
    lower = tl.maximum(low, tl.max(tl.where(under, float("-inf"), pivots), axis=0))
    upper = tl.minimum(last, tl.min(tl.where(under, pivots, float("inf")), axis=0))
    over = tl.maximum(above, tl.max(tl.where(under, measured, above), axis=0))
    return (
        tl.where(again, 2.0, tl.where(found, 0.0, tl.where(phase == 2, 3.0, phase))),
        tl.where(again, threshold, least),
        tl.where(again, float("-inf"), lower),
        tl.where(again, top, tl.where(found, threshold, upper)),
        tl.where(again, threshold, tl.maximum(lower, first)),
        tl.where(again, 0.0, over),
        target,
        tl.where(found, share, ties),
        top,
    )


@triton.jit
def _load_state(state_ptr, row):
    state = state_ptr + row * 9
    return (
        tl.load(state),
        tl.load(state + 1),
        tl.load(state + 2),
        tl.load(state + 3),
        tl.load(state + 4),
        tl.load(state + 5),
        tl.load(state + 6),
        tl.load(state + 7),
        tl.load(state + 8),
    )


@triton.jit
def store_state(state_ptr, row, state):
    """Keep a row's state for the pass that follows."""
    tl.store(state_ptr + row * 9 + 0, state[0])
    tl.store(state_ptr + row * 9 + 1, state[1])
    tl.store(state_ptr + row * 9 + 2, state[2])
    tl.store(state_ptr + row * 9 + 3, state[3])
    tl.store(state_ptr + row * 9 + 4, state[4])
    tl.store(state_ptr + row * 9 + 5, state[5])
    tl.store(state_ptr + row * 9 + 6, state[6])
    tl.store(state_ptr + row * 9 + 7, state[7])
    tl.store(state_ptr + row * 9 + 8, state[8])


@triton.jit
def _after(
    state_ptr, measured_ptr, ends_ptr, row, inverse, top_p,
    PARTS: tl.constexpr, PARTS_2: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """The state that the last pass led to, the same in every program that asks."""
    state = _load_state(state_ptr, row)
    if state[0] > 0:
        part = tl.arange(0, PARTS_2)
        at = row * PARTS + part
        measured = tl.load(
            measured_ptr + at[:, None] * PIVOTS + tl.arange(0, PIVOTS)[None, :],
            mask=(part < PARTS)[:, None],
            other=0.0,
        )
        first = tl.load(ends_ptr + at * 2, mask=part < PARTS, other=float("inf"))
        last = tl.load(ends_ptr + at * 2 + 1, mask=part < PARTS, other=float("-inf"))
        total = tl.sum(measured.to(tl.float64), axis=0)
        state = advance(
            state, total, tl.min(first, axis=0), tl.max(last, axis=0), inverse, top_p, PIVOTS
        )
    return state


@triton.jit
def resume(
    last_state_ptr, last_measured_ptr, last_ends_ptr, maxima_ptr, sums_ptr,
    row, inverse, top_k, top_p,
    V: tl.constexpr, BLOCKS: tl.constexpr, BLOCKS_2: tl.constexpr,
    PARTS: tl.constexpr, PARTS_2: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """Where a row's search stands: at its beginning, or behind the last pass."""
    if last_state_ptr is None:
        return begin(maxima_ptr, sums_ptr, row, inverse, top_k, top_p, V, BLOCKS, BLOCKS_2)
    else:
        return _after(
            last_state_ptr, last_measured_ptr, last_ends_ptr, row, inverse, top_p,
            PARTS, PARTS_2, PIVOTS,
        )  # fmt: skip
