import pytest
import torch
from tests.kernels import conftest

from turret_kernels import gpu, native
from turret_kernels.entries import Entries
from turret_kernels.graph import Graph, MemoryPool, capture
from turret_kernels.sparse_delta import SparseMatrix, SparseTable, sparse_delta

# Outputs, inputs, and the share of non-zeros of slots 0 to 2; slot 3 has nothing.
SIZES = [(48, 64), (80, 33), (5, 200)]
SHARES = (0.02, 0.3, 1.0)
HAS_KERNEL = native.lib is not None or gpu.INTERPRETED or conftest.ON_GPU


def entries(*rows):
    """From (slot, weight, first row, rows)."""
    slot, weight, start, count = zip(*rows, strict=True)
    host = [torch.tensor(x, dtype=torch.int32, device="cpu") for x in (start, count)]
    return Entries(torch.tensor(slot, dtype=torch.int32), torch.tensor(weight), *host)


def make(n, k, dtype):
    """A table, and its matrices dense in float64."""
    table, dense = SparseTable(len(SHARES) + 1, k, n), []
    for slot, share in enumerate(SHARES):
        weight = torch.randn(n, k).to(dtype) * (torch.rand(n, k) < share)
        weight[n // 2] = 0  # an output without values
        csr = weight.to_sparse_csr()
        matrix = SparseMatrix(csr.crow_indices().long(), csr.col_indices().int(), csr.values())
        table.set(slot, matrix)
        dense.append(weight.double())
    return table, [*dense, torch.zeros(n, k).double()]


BATCHES = {
    "decode": (9, [(0, 1.0, 0, 1), (1, 1.0, 1, 1), (2, 1.0, 2, 3), (3, 1.0, 7, 1)]),
    "prefill": (90, [(0, 1.0, 0, 17), (2, 0.5, 17, 40), (1, 1.0, 70, 20)]),
    "stacked": (40, [(0, 1.0, 0, 20), (1, -0.5, 0, 20), (2, 2.0, 20, 15)]),
    "absent": (6, [(3, 1.0, 0, 6)]),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.triton
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("is_head", [False, True])
def test_matches_dense_deltas(batch, n, k, dtype, is_head, assert_parity):
    out = torch.float32 if is_head else dtype  # logits
    tokens, rows = BATCHES[batch]
    table, dense = make(n, k, dtype)
    x, y = torch.randn(tokens, k).to(dtype), torch.randn(tokens, n + 7).to(out)
    expected = y.double()
    for slot, weight, start, count in rows:
        delta = weight * x[start : start + count].double() @ dense[slot].T
        expected[start : start + count, 4 : 4 + n] += delta
    before = y.clone()
    sparse_delta(y, x, table, entries(*rows), 4)
    # A 16-bit output is rounded once per entry.
    assert_parity(y, expected, steps=2, sums=True)
    untouched = expected == before.double()
    assert torch.equal(y[untouched], before[untouched])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.triton
@pytest.mark.skipif(not HAS_KERNEL, reason="torch makes no such promise")
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 15])
def test_a_row_does_not_depend_on_its_batch(rows, dtype):
    table, _ = make(80, 200, dtype)
    x = torch.randn(40, 200).to(dtype)
    whole, part = torch.zeros(40, 80), torch.zeros(40, 80)
    sparse_delta(whole, x, table, entries((1, 0.7, 0, 40)))
    sparse_delta(part, x, table, entries((1, 0.7, 20, rows)))
    assert torch.equal(part[20 : 20 + rows], whole[20 : 20 + rows])
    assert not part[20 + rows :].any()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.skipif(native.lib is None, reason="graphs record native kernels")
def test_a_recorded_call_serves_what_is_resident_later():
    table, dense = make(48, 64, torch.bfloat16)
    x, y = torch.randn(3, 64).bfloat16(), torch.zeros(3, 48)
    static = entries((0, 1.0, 0, 1), (0, 1.0, 1, 2))
    with capture(MemoryPool()) as calls:
        sparse_delta(y, x, table, static)
    graph = Graph(calls)
    table.set(0, None)
    table.set(3, table.matrices[2])
    static.slot[0], static.weight[0], static.row_count[0] = 3, -1.0, 3
    static.count[0] = 1
    y.zero_()
    graph.replay()
    expected = -x.double() @ dense[2].T
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
