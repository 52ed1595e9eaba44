import pytest
import torch

from turret_kernels.embed_low_rank import embed_low_rank, embed_low_rank_reference
from turret_kernels.entries import Entries
from turret_kernels.low_rank import RankPool
from turret_kernels.testing import exact

pytestmark = pytest.mark.triton

VOCAB = 77


def make(ranks, width, dtype):
    """A pool full of NaN but for the adapters' rows."""
    capacity = sum(ranks) + 5
    pool = RankPool(
        torch.full((capacity, VOCAB), float("nan"), dtype=dtype),
        torch.full((capacity, width), float("nan"), dtype=dtype),
        slots=torch.zeros(3, len(ranks), dtype=torch.int32),
    )
    start = 2
    for slot, rank in enumerate(ranks):
        pool.a[start : start + rank] = torch.randn(rank, VOCAB).to(dtype)
        pool.b[start : start + rank] = torch.randn(rank, width).to(dtype)
        pool.assign(slot, start, rank)
        start += rank
    return pool


def entries(rows):
    slot, weight, start, count = zip(*rows, strict=True)
    on_host = [torch.tensor(v, dtype=torch.int32, device="cpu") for v in (start, count)]
    return Entries(torch.tensor(slot, dtype=torch.int32), torch.tensor(weight), *on_host)


BATCHES = {
    "decode": (5, [(0, 1.0, 0, 1), (1, 0.5, 1, 2), (2, 1.0, 4, 1)]),
    "stacked": (20, [(0, 1.0, 1, 18), (1, -0.5, 1, 18), (3, 1.0, 1, 18)]),
    "prefill": (270, [(1, 1.0, 0, 70), (3, 1.0, 70, 80), (0, 2.0, 200, 5)]),
}


# Natively every adapter of a stack is rounded into the result.
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("width", [64, 150])
def test_matches_the_reference(batch, width, dtype, assert_parity):
    tokens, rows = BATCHES[batch]
    pool = make([3, 16, 0, 37], width, dtype)
    ids, y = torch.randint(VOCAB, (tokens,)), torch.randn(tokens, width).to(dtype)
    want = exact(y).clone()
    embed_low_rank_reference(want, ids, pool, entries(rows))
    embed_low_rank(y, ids, pool, entries(rows))
    assert_parity(y, want, steps=2, sums=True)


def test_gathers_the_columns_of_its_tokens(dtype, assert_parity):
    pool = make([3, 4], 32, dtype)
    ids, y = torch.randint(VOCAB, (6,)), torch.randn(6, 32).to(dtype)
    weight = torch.tensor([2.0, -1.0])
    want = y.double()
    for slot, rows in ((0, slice(0, 2)), (1, slice(3, 6))):
        start, rank = int(pool.start[slot]), int(pool.count[slot])
        a, b = pool.a[start : start + rank].double(), pool.b[start : start + rank].double()
        want[rows] += float(weight[slot]) * a[:, ids[rows]].T @ b
    before = y[2].clone()
    embed_low_rank(y, ids, pool, entries([(0, 9.0, 0, 2), (1, 9.0, 3, 3)]), weight)
    assert torch.equal(y[2], before)
    assert_parity(y, want, steps=2, sums=True)
