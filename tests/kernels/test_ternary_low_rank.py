import random

import pytest
import torch
from tests.kernels.test_low_rank import BATCHES, entries

from turret_kernels import gpu
from turret_kernels.low_rank import ROW_ALIGNMENT
from turret_kernels.ternary_low_rank import (
    TernaryPool,
    TernarySlices,
    num_words,
    pack_ternary,
    ternary_low_rank,
    unpack_ternary,
    write_ternary_rows,
)

triton = pytest.mark.triton


def make(k, widths, ranks):
    """Pools whose rows are full of ones and NaN but for the adapters'; also their factors."""
    pools, factors = [], []
    for n in widths:
        capacity = sum(r + 1 for r in ranks) + 8
        pool = TernaryPool(
            a=torch.full((capacity, num_words(k)), 0x5555, dtype=torch.int16),
            b=torch.full((capacity, num_words(n)), 0x5555, dtype=torch.int16),
            scale=torch.full((capacity,), float("nan")),
            in_features=k,
            out_features=n,
            slots=torch.zeros(3, len(ranks), dtype=torch.int32),
        )
        start, of_slots = ROW_ALIGNMENT, []
        for slot, rank in enumerate(ranks):
            a, b = (torch.randint(-1, 2, (rank, size)) for size in (k, n))
            scale = torch.rand(rank) / k**0.5
            of_slots.append((a, b, scale))
            write_ternary_rows(pool, start, pack_ternary(a), pack_ternary(b), scale)
            pool.assign(slot, start, rank)
            start += -(-rank // ROW_ALIGNMENT) * ROW_ALIGNMENT
        pools.append(pool)
        factors.append(of_slots)
    columns = [sum(widths[:i]) for i in range(len(widths))]
    return TernarySlices(pools, columns), factors


def expected(y, x, slices, factors, rows, weights=None):
    """The formula, in float64."""
    y = y.double()
    for s, (of_slots, column) in enumerate(zip(factors, slices.columns, strict=True)):
        for e, (slot, weight, start, count) in enumerate(rows):
            a, b, scale = (part.double() for part in of_slots[slot])
            w = weight if weights is None else float(weights[s][e])
            delta = w * (x[start : start + count].double() @ a.T * scale) @ b
            y[start : start + count, column : column + b.shape[1]] += delta
    return y


@pytest.mark.parametrize("width", [1, 7, 64, 65, 130, 512])
def test_packing_is_undone_by_unpacking(width):
    values = torch.randint(-1, 2, (3, width), dtype=torch.int8)
    packed = pack_ternary(values)
    assert packed.shape == (3, num_words(width))
    assert torch.equal(unpack_ternary(packed, width), values)
    wide = unpack_ternary(packed, 8 * packed.shape[1])
    assert not wide[:, width:].any(), "what is beyond a row is 0: nobody masks it twice"


def test_the_bits_are_where_a_float_has_its_sign_and_a_two():
    """The layout, written down once more: eight words, word 1 has values 1, 9, …, 57."""
    values = torch.zeros(1, 64, dtype=torch.int8)
    values[0, [1, 9, 57]] = torch.tensor([-1, 1, -1], dtype=torch.int8)
    word = pack_ternary(values)[0, 1].item() & 0xFFFF
    assert word == 0b11_01_00_00_00_00_00_11
    doubled = torch.tensor([word & 0xC000], dtype=torch.int32).to(torch.int16)
    assert doubled.view(torch.bfloat16).item() == doubled.view(torch.float16).item() == -2.0


@triton
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("widths", [[48], [288, 32, 32]], ids=str)
def test_matches_dense_deltas(batch, widths, dtype, assert_parity):
    tokens, rows = BATCHES[batch]
    slices, factors = make(64, widths, [8, 3, 33, 64, 0])
    x, y = torch.randn(tokens, 64).to(dtype), torch.randn(tokens, sum(widths)).to(dtype)
    want = expected(y, x, slices, factors, rows)
    ternary_low_rank(y, x, slices, entries(rows))
    assert_parity(y, want, steps=2, sums=True)


# 1100 has 144 words, in two chunks of which the second is short, and 52 values that are none; 9300
# is cut in eight for a decode, in four for more.
@triton
@pytest.mark.parametrize(("k", "tokens"), [(1100, 3), (1100, 260), (9300, 3), (9300, 260)])
def test_long_inputs_are_cut(k, tokens, dtype, assert_parity):
    slices, factors = make(k, [32], [6, 20])
    rows = [(0, 1.0, 0, 2), (1, 0.5, 2, 1), (1, 1.0, tokens - 10, 10)][: 2 if tokens < 10 else 3]
    x, y = torch.randn(tokens, k).to(dtype), torch.randn(tokens, 32).to(dtype)
    want = expected(y, x, slices, factors, rows)
    ternary_low_rank(y, x, slices, entries(rows))
    assert_parity(y, want, steps=2, sums=True)


@triton
def test_a_program_takes_several_blocks_of_ranks(dtype, assert_parity, monkeypatch):
    """Where a launch has enough other programs: here at once."""
    slices, factors = make(64, [48], [100, 7])
    x, y = torch.randn(9, 64).to(dtype), torch.zeros(9, 48).to(dtype)
    rows = [(0, 1.0, 0, 2), (1, 1.0, 2, 1)]
    if gpu.takes(x):
        monkeypatch.setattr("turret_kernels.gpu.ternary_low_rank.PROGRAMS", 1)
    want = expected(y, x, slices, factors, rows)
    ternary_low_rank(y, x, slices, entries(rows))
    assert_parity(y, want, steps=2, sums=True)


@triton
@pytest.mark.parametrize("seed", range(5))
def test_any_batch_of_any_sizes(seed, dtype, assert_parity):
    """Widths that no word divides, ranks of no block, runs of rows with gaps and stacks."""
    draw = random.Random(seed)
    ranks = [draw.choice([0, 1, 2, 5, 16, 17, 40]) for _ in range(5)]
    ranks[0] = ranks[0] or 3
    k = draw.choice([16, 72, 100, 576, 1030])
    widths = [draw.choice([8, 33, 64, 200, 300]) for _ in range(draw.randint(1, 3))]
    rows, row = [], 0
    while row < 20:
        count, gap = draw.randint(1, 19), draw.randint(0, 2)
        for _ in range(draw.randint(1, 3)):
            rows.append((draw.randrange(5), draw.uniform(-1, 1), row + gap, count))
        row += gap + count
    rows.append((0, 1.0, row, 1))
    slices, factors = make(k, widths, ranks)
    x = torch.randn(row + 1, k).to(dtype)
    y = torch.randn(row + 1, sum(widths)).to(dtype)
    want = expected(y, x, slices, factors, rows)
    ternary_low_rank(y, x, slices, entries(rows))
    assert_parity(y, want, steps=2, sums=True)


@triton
def test_what_no_entry_or_slice_names_is_untouched(dtype, assert_parity):
    """Rows of no adapter, and columns of a linear (k, between q and v) that has no pool."""
    slices, factors = make(64, [48, 16], [8])
    slices = TernarySlices(slices.pools, [0, 64])
    x, y = torch.randn(9, 64).to(dtype), torch.randn(9, 80).to(dtype)
    rows, before = [(0, 1.0, 3, 2)], y.clone()
    want = expected(y, x, slices, factors, rows)
    ternary_low_rank(y, x, slices, entries(rows))
    assert torch.equal(y[:3], before[:3])
    assert torch.equal(y[5:], before[5:])
    assert torch.equal(y[:, 48:64], before[:, 48:64])
    assert_parity(y, want, steps=2, sums=True)


@triton
def test_weights_per_slice(dtype, assert_parity):
    slices, factors = make(64, [32, 32], [4, 2])
    x, y = torch.randn(3, 64).to(dtype), torch.zeros(3, 64).to(dtype)
    rows = [(0, 1.0, 0, 2), (1, 1.0, 2, 1)]
    by_site = torch.tensor([[2.0, 0.5], [0.0, -1.0]])
    want = expected(y, x, slices, factors, rows, by_site)
    ternary_low_rank(y, x, slices, entries(rows), list(by_site))
    assert_parity(y, want, steps=2, sums=True)
    assert y[:2, 32:].abs().max() == 0


@triton
@pytest.mark.parametrize("width", [48, 50])
def test_logits_stay_float32(width, dtype):
    slices, factors = make(64, [width], [4])
    x, y = torch.randn(3, 64).to(dtype), torch.zeros(3, width)
    want = expected(y, x, slices, factors, [(0, 1.0, 0, 3)])
    ternary_low_rank(y, x, slices, entries([(0, 1.0, 0, 3)]))
    assert y.dtype == torch.float32
    # The hidden values are rounded once.
    step = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6
    torch.testing.assert_close(y.double(), want, rtol=step, atol=step * want.abs().max().item())


@triton
@pytest.mark.parametrize("k", [64, 1100])
def test_a_row_does_not_depend_on_its_batch(k, dtype):
    slices, _ = make(k, [64, 32], [16, 5])
    x = torch.randn(40, k).to(dtype)
    if not gpu.takes(x):
        return  # torch makes no such promise
    whole, alone, other = torch.zeros(3, 40, 96).to(dtype)
    ternary_low_rank(whole, x, slices, entries([(0, 1.0, 0, 40)]))
    ternary_low_rank(alone, x, slices, entries([(0, 1.0, 21, 1)]))
    ternary_low_rank(other, x, slices, entries([(1, 1.0, 0, 2), (0, 1.0, 19, 4), (1, 1.0, 30, 10)]))
    assert torch.equal(alone[21], whole[21])
    assert torch.equal(other[21], whole[21])
