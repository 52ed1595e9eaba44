import pytest
import torch

from turret_kernels.entries import Entries
from turret_kernels.low_rank import (
    ROW_ALIGNMENT,
    RankPool,
    RankSlices,
    low_rank,
    write_rank_rows,
)


def make(k, widths, ranks, dtype):
    """Pools full of NaN but for the adapters' rows; also the dense deltas in float64."""
    slices, deltas = [], []
    for n in widths:
        capacity = sum(r + 1 for r in ranks) + 8
        pool = RankPool(
            torch.full((capacity, k), float("nan"), dtype=dtype),
            torch.full((capacity, n), float("nan"), dtype=dtype),
            torch.zeros(len(ranks), dtype=torch.int32),
            torch.zeros(len(ranks), dtype=torch.int32),
        )
        start, dense = ROW_ALIGNMENT, []
        for slot, rank in enumerate(ranks):
            a, b = torch.randn(rank, k).to(dtype), torch.randn(rank, n).to(dtype) / 8
            dense.append(b.double().T @ a.double())
            if rank:
                write_rank_rows(pool, start, a, b)
            pool.start[slot], pool.count[slot] = start, rank
            start += -(-rank // ROW_ALIGNMENT) * ROW_ALIGNMENT
        slices.append(pool)
        deltas.append(dense)
    columns = [sum(widths[:i]) for i in range(len(widths))]
    return RankSlices(slices, columns), deltas


def entries(rows):
    slot, weight, start, count = zip(*rows, strict=True)
    as_int = lambda v: torch.tensor(v, dtype=torch.int32)  # noqa: E731
    return Entries(as_int(slot), torch.tensor(weight), as_int(start), as_int(count))


BATCHES = {
    "decode": (9, [(0, 1.0, 0, 1), (1, 1.0, 1, 1), (2, 1.0, 2, 3), (3, 1.0, 7, 1)]),
    "prefill": (150, [(0, 1.0, 0, 17), (2, 0.5, 17, 100), (3, 1.0, 130, 20)]),
    "stacked": (40, [(0, 1.0, 0, 20), (1, -0.5, 0, 20), (2, 2.0, 10, 25)]),
    "absent": (6, [(4, 1.0, 0, 6)]),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("widths", [[48], [64, 32, 32], [80, 80]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_matches_dense_deltas(batch, widths, dtype):
    tokens, rows = BATCHES[batch]
    slices, deltas = make(64, widths, [8, 3, 33, 64, 0], dtype)
    x, y = torch.randn(tokens, 64).to(dtype), torch.randn(tokens, sum(widths)).to(dtype)
    expected = y.double()
    for slot, weight, start, count in rows:
        for dense, column in zip(deltas, slices.columns, strict=True):
            out = expected[start : start + count, column : column + dense[slot].shape[0]]
            out += weight * x[start : start + count].double() @ dense[slot].T
    low_rank(y, x, slices, entries(rows))
    # bf16: the rank values and the sum are rounded once each; deltas are of order eight.
    tolerance = (
        {"rtol": 2**-6, "atol": 0.2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-4}
    )
    torch.testing.assert_close(y.double(), expected, **tolerance)


def test_rows_without_an_entry_are_untouched():
    slices, _ = make(64, [48], [8], torch.bfloat16)
    x, y = torch.randn(10, 64).bfloat16(), torch.randn(10, 48).bfloat16()
    before = y.clone()
    low_rank(y, x, slices, entries([(0, 1.0, 3, 2)]))
    assert torch.equal(y[:3], before[:3])
    assert torch.equal(y[5:], before[5:])
    assert not torch.equal(y[3:5], before[3:5])


def test_weights_per_slice():
    slices, deltas = make(64, [32, 32], [4], torch.float32)
    x, y = torch.randn(3, 64), torch.zeros(3, 64)
    low_rank(y, x, slices, entries([(0, 1.0, 0, 3)]), [torch.tensor([2.0]), torch.tensor([0.0])])
    expected = 2 * x.double() @ deltas[0][0].T
    torch.testing.assert_close(y[:, :32].double(), expected, rtol=1e-5, atol=1e-4)
    assert y[:, 32:].abs().max() == 0


@pytest.mark.parametrize("width", [48, 50])
def test_logits_stay_float32(width):
    slices, deltas = make(64, [width], [4], torch.bfloat16)
    x, y = torch.randn(3, 64).bfloat16(), torch.zeros(3, width)
    low_rank(y, x, slices, entries([(0, 1.0, 0, 3)]))
    torch.testing.assert_close(y.double(), x.double() @ deltas[0][0].T, rtol=2**-6, atol=0.1)


def test_a_row_does_not_depend_on_its_batch():
    slices, _ = make(64, [64, 32], [16], torch.bfloat16)
    if slices.table is None:
        return  # torch makes no such promise
    x = torch.randn(40, 64).bfloat16()
    whole, alone = torch.zeros(40, 96).bfloat16(), torch.zeros(40, 96).bfloat16()
    low_rank(whole, x, slices, entries([(0, 1.0, 0, 40)]))
    low_rank(alone, x, slices, entries([(0, 1.0, 21, 1)]))
    assert torch.equal(alone[21], whole[21])


def mixed(x, a, b, experts):
    """What a mixture adds, in float64: every token weighs the experts by itself."""
    hidden = x.double() @ a.double().T
    gate, rank = hidden[:, -experts:].softmax(-1), (a.shape[0] - experts) // experts
    parts = [slice(e * rank, (e + 1) * rank) for e in range(experts)]
    return sum(gate[:, e, None] * (hidden[:, p] @ b[p].double()) for e, p in enumerate(parts))


# Ranks with the gate: even, odd, and more than one group of sixteen.
@pytest.mark.parametrize(("rank", "experts"), [(2, 4), (3, 3), (1, 1), (4, 8), (5, 7)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_mixture_weighs_its_experts_by_token(rank, experts, dtype):
    slices, deltas = make(64, [48], [6, 8], dtype)  # slot 0 and 1 are plain; 2 is the mixture
    total, pool = rank * experts + experts, slices.pools[0]
    a, b = torch.randn(total, 64).to(dtype) / 4, torch.randn(total, 48).to(dtype) / 8
    b[-experts:] = 0
    big = RankPool(
        torch.cat([pool.a, torch.full((total + 1, 64), float("nan"), dtype=dtype)]),
        torch.cat([pool.b, torch.full((total + 1, 48), float("nan"), dtype=dtype)]),
        torch.tensor([*pool.start.tolist(), pool.a.shape[0]], dtype=torch.int32),
        torch.tensor([*pool.count.tolist(), total], dtype=torch.int32),
    )
    big.experts[2] = experts
    write_rank_rows(big, pool.a.shape[0], a, b)
    x, y = torch.randn(40, 64).to(dtype), torch.zeros(40, 48)
    uses = [(0, 1.0, 0, 2), (2, 0.5, 1, 20), (2, -2.0, 21, 1), (1, 1.0, 30, 3)]
    expected = y.double()
    for slot, weight, start, count in uses:
        rows = x[start : start + count]
        delta = mixed(rows, a, b, experts) if slot == 2 else rows.double() @ deltas[0][slot].T
        expected[start : start + count] += weight * delta
    low_rank(y, x, RankSlices([big], [0]), entries(uses))
    # bf16: the weighed hidden values are rounded once; deltas are of order two.
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(y.double(), expected, rtol=2**-7, atol=tolerance)
