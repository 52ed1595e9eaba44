import pytest
import torch

from turret_kernels import gpu
from turret_kernels.entries import Entries
from turret_kernels.low_rank import (
    ROW_ALIGNMENT,
    RankPool,
    RankSlices,
    low_rank,
    write_rank_rows,
)

pytestmark = pytest.mark.triton

# Natively bfloat16 is the kernel's and the others are torch's.
dtypes = pytest.mark.parametrize("dtype", sorted(gpu.DTYPES, key=str), ids=str)


def make(k, widths, ranks, dtype, experts=0):
    """Pools full of NaN but for the adapters' rows; also their factors.

    `experts`: the last rank is a mixture's.
    """
    pools, factors = [], []
    for n in widths:
        capacity = sum(r + 1 for r in ranks) + 8
        pool = RankPool(
            torch.full((capacity, k), float("nan"), dtype=dtype),
            torch.full((capacity, n), float("nan"), dtype=dtype),
            slots=torch.zeros(3, len(ranks), dtype=torch.int32),
        )
        start, of_slots = ROW_ALIGNMENT, []
        for slot, rank in enumerate(ranks):
            a, b = torch.randn(rank, k) / k**0.5, torch.randn(rank, n)
            gates = experts if slot == len(ranks) - 1 else 0
            if gates:
                b[-gates:] = 0
            of_slots.append((a.to(dtype), b.to(dtype), gates))
            if rank:
                write_rank_rows(pool, start, *of_slots[-1][:2])
            pool.assign(slot, start, rank, gates)
            start += -(-rank // ROW_ALIGNMENT) * ROW_ALIGNMENT
        pools.append(pool)
        factors.append(of_slots)
    columns = [sum(widths[:i]) for i in range(len(widths))]
    return RankSlices(pools, columns), factors


def entries(rows):
    slot, weight, start, count = zip(*rows, strict=True)
    on_host = [torch.tensor(v, dtype=torch.int32, device="cpu") for v in (start, count)]
    return Entries(torch.tensor(slot, dtype=torch.int32), torch.tensor(weight), *on_host)


def expected(y, x, slices, factors, rows, weights=None):
    """The formula, in float64."""
    y = y.double()
    for s, (of_slots, column) in enumerate(zip(factors, slices.columns, strict=True)):
        for e, (slot, weight, start, count) in enumerate(rows):
            a, b, experts = of_slots[slot]
            hidden = x[start : start + count].double() @ a.double().T
            if experts:
                hidden, gate = hidden[:, :-experts], hidden[:, -experts:].softmax(-1)
                hidden = hidden * gate.repeat_interleave(hidden.shape[1] // experts, 1)
            w = weight if weights is None else float(weights[s][e])
            delta = w * hidden @ b.double()[: hidden.shape[1]]
            y[start : start + count, column : column + b.shape[1]] += delta
    return y


BATCHES = {
    "decode": (9, [(0, 1.0, 0, 1), (1, 1.0, 1, 1), (2, 1.0, 2, 3), (3, 1.0, 7, 1)]),
    "decode, more than a tile": (40, [(0, 1.0, 0, 17), (2, 0.5, 20, 20)]),
    "prefill": (300, [(0, 1.0, 0, 17), (2, 0.5, 17, 100), (3, 1.0, 140, 64)]),
    "stacked": (31, [(0, 1.0, 0, 20), (1, -0.5, 0, 20), (3, 0.7, 0, 20), (2, 2.0, 20, 10)]),
    "absent": (6, [(4, 1.0, 0, 6)]),
    "stacked with an absent one": (6, [(4, 1.0, 0, 6), (1, 1.0, 0, 6)]),
}


# Hidden values and results are rounded, and a stack of four natively after every adapter.
@dtypes
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("widths", [[48], [288, 32, 32], [80, 80]], ids=str)
def test_matches_dense_deltas(batch, widths, dtype, assert_parity):
    tokens, rows = BATCHES[batch]
    slices, factors = make(64, widths, [8, 3, 33, 64, 0], dtype)
    x, y = torch.randn(tokens, 64).to(dtype), torch.randn(tokens, sum(widths)).to(dtype)
    want = expected(y, x, slices, factors, rows)
    low_rank(y, x, slices, entries(rows))
    assert_parity(y, want, steps=2, sums=True)


# 1100 is cut in two, neither part a multiple of a step; 9300 in eight for a decode, four for more.
@pytest.mark.parametrize(("k", "tokens"), [(1100, 3), (1100, 260), (9300, 3), (9300, 260)])
def test_long_inputs_are_cut(k, tokens, dtype, assert_parity):
    slices, factors = make(k, [32], [6, 20], dtype)
    rows = [(0, 1.0, 0, 2), (1, 0.5, 2, 1), (1, 1.0, tokens - 10, 10)][: 2 if tokens < 10 else 3]
    x, y = torch.randn(tokens, k).to(dtype), torch.randn(tokens, 32).to(dtype)
    want = expected(y, x, slices, factors, rows)
    low_rank(y, x, slices, entries(rows))
    assert_parity(y, want, steps=2, sums=True)


def test_a_program_takes_several_blocks_of_ranks(dtype, assert_parity, monkeypatch):
    """Where a launch has enough other programs: here at once."""
    slices, factors = make(64, [48], [100, 7], dtype)
    x, y = torch.randn(9, 64).to(dtype), torch.zeros(9, 48).to(dtype)
    rows = [(0, 1.0, 0, 2), (1, 1.0, 2, 1)]
    if gpu.takes(x):
        monkeypatch.setattr("turret_kernels.gpu.low_rank.PROGRAMS", 1)
    want = expected(y, x, slices, factors, rows)
    low_rank(y, x, slices, entries(rows))
    assert_parity(y, want, steps=2, sums=True)


def test_rows_without_an_entry_are_untouched(dtype):
    slices, _ = make(64, [48], [8], dtype)
    x, y = torch.randn(10, 64).to(dtype), torch.randn(10, 48).to(dtype)
    before = y.clone()
    low_rank(y, x, slices, entries([(0, 1.0, 3, 2)]))
    assert torch.equal(y[:3], before[:3])
    assert torch.equal(y[5:], before[5:])
    assert not torch.equal(y[3:5], before[3:5])


def test_columns_without_a_slice_are_untouched(dtype, assert_parity):
    """q and v have adapters, k between them has none."""
    slices, factors = make(64, [48, 16], [8], dtype)
    slices = RankSlices(slices.pools, [0, 64])
    x, y = torch.randn(3, 64).to(dtype), torch.randn(3, 80).to(dtype)
    rows, before = [(0, 1.0, 0, 3)], y.clone()
    want = expected(y, x, slices, factors, rows)
    low_rank(y, x, slices, entries(rows))
    assert torch.equal(y[:, 48:64], before[:, 48:64])
    assert_parity(y, want, steps=2, sums=True)


def test_weights_per_slice(dtype, assert_parity):
    slices, factors = make(64, [32, 32], [4, 2], dtype)
    x, y = torch.randn(3, 64).to(dtype), torch.zeros(3, 64).to(dtype)
    rows = [(0, 1.0, 0, 2), (1, 1.0, 2, 1)]
    by_site = torch.tensor([[2.0, 0.5], [0.0, -1.0]])
    want = expected(y, x, slices, factors, rows, by_site)
    low_rank(y, x, slices, entries(rows), list(by_site))
    assert_parity(y, want, steps=2, sums=True)
    assert y[:2, 32:].abs().max() == 0


@dtypes
@pytest.mark.parametrize("width", [48, 50])
def test_logits_stay_float32(width, dtype):
    slices, factors = make(64, [width], [4], dtype)
    x, y = torch.randn(3, 64).to(dtype), torch.zeros(3, width)
    want = expected(y, x, slices, factors, [(0, 1.0, 0, 3)])
    low_rank(y, x, slices, entries([(0, 1.0, 0, 3)]))
    assert y.dtype == torch.float32
    # The hidden values are rounded once.
    step = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6
    torch.testing.assert_close(y.double(), want, rtol=step, atol=step * want.abs().max().item())


def test_an_activation_is_read_as_it_was(dtype, assert_parity):
    """At a block's output `x` is `y`, and a second adapter reads what the first one read."""
    slices, factors = make(64, [64], [8, 3], dtype)
    y = torch.randn(20, 64).to(dtype)
    rows = [(0, 1.0, 1, 18), (1, 0.5, 1, 18)]
    want = expected(y, y, slices, factors, rows)
    low_rank(y, y, slices, entries(rows))
    assert_parity(y, want, steps=2, sums=True)


@pytest.mark.parametrize("k", [64, 1100])
def test_a_row_does_not_depend_on_its_batch(k, dtype):
    slices, _ = make(k, [64, 32], [16, 5], dtype)
    x = torch.randn(40, k).to(dtype)
    if slices.table is None and not gpu.takes(x):
        return  # torch makes no such promise
    whole, alone, other = torch.zeros(3, 40, 96).to(dtype)
    low_rank(whole, x, slices, entries([(0, 1.0, 0, 40)]))
    low_rank(alone, x, slices, entries([(0, 1.0, 21, 1)]))
    low_rank(other, x, slices, entries([(1, 1.0, 0, 2), (0, 1.0, 19, 4), (1, 1.0, 30, 10)]))
    assert torch.equal(alone[21], whole[21])
    assert torch.equal(other[21], whole[21])


# Ranks with the gate: even, odd, more than one block; gates that end in another block.
@dtypes
@pytest.mark.parametrize(("rank", "experts"), [(2, 4), (3, 3), (1, 1), (4, 8), (5, 7), (1, 50)])
def test_a_mixture_weighs_its_experts_by_token(rank, experts, dtype, assert_parity):
    slices, factors = make(64, [48], [6, 8, (rank + 1) * experts], dtype, experts)
    x, y = torch.randn(40, 64).to(dtype), torch.zeros(40, 48).to(dtype)
    rows = [(0, 1.0, 0, 2), (2, 0.5, 2, 19), (2, -2.0, 21, 1), (1, 1.0, 30, 3)]
    want = expected(y, x, slices, factors, rows)
    low_rank(y, x, slices, entries(rows))
    assert_parity(y, want, steps=2, sums=True)


@pytest.mark.parametrize("tokens", [10, 270])
def test_a_mixture_of_a_long_input(tokens, dtype, assert_parity):
    """Its hidden values are in parts, and beside it acts an adapter that is none."""
    slices, factors = make(2100, [32, 16], [6, 18], dtype, experts=3)
    x, y = torch.randn(tokens, 2100).to(dtype), torch.zeros(tokens, 48).to(dtype)
    rows = [(0, 1.0, 0, 1), (1, 0.5, 1, 9), (0, 1.0, 1, 9)]
    want = expected(y, x, slices, factors, rows)
    low_rank(y, x, slices, entries(rows))
    assert_parity(y, want, steps=2, sums=True)
