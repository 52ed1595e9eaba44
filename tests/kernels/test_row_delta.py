import pytest
import torch

from turret_kernels import native
from turret_kernels.entries import Entries
from turret_kernels.graph import Graph, MemoryPool, capture
from turret_kernels.row_delta import ChangedRows, RowTable, embed_row_delta, head_row_delta

VOCAB, HIDDEN = 50, 37
IDS = [[3, 7, 49], [0], [7, 8, 9, 10, 11]]  # of slots 0 to 2; slot 3 has nothing
# Slots 0 and 2, stacked, both change row 7.
USES = [(0, 1.0, 0, 4), (2, -0.5, 0, 4), (2, 3.0, 4, 1), (1, 2.0, 5, 2), (3, 1.0, 7, 1)]


def entries(*rows):
    slot, weight, start, count = zip(*rows, strict=True)
    host = [torch.tensor(x, dtype=torch.int32, device="cpu") for x in (start, count)]
    return Entries(torch.tensor(slot, dtype=torch.int32), torch.tensor(weight), *host)


def make():
    """A table, and what each slot adds to the whole matrix, in float64."""
    table, dense = RowTable(4), torch.zeros(4, VOCAB, HIDDEN).double()
    for slot, ids in enumerate(IDS):
        delta = torch.randn(len(ids), HIDDEN)
        table.set(slot, ChangedRows(torch.tensor(ids), delta))
        dense[slot, ids] = delta.double()
    return table, dense


@pytest.mark.triton
def test_embedding(dtype, assert_parity):
    table, dense = make()
    tokens = torch.tensor([3, 8, 7, 49, 11, -1, 0, -1, 3])
    y = torch.randn(9, HIDDEN).to(dtype)
    expected, before = y.double(), y.clone()
    for slot, weight, start, count in USES:
        for row in range(start, start + count):
            if tokens[row] >= 0:  # negative ones are virtual tokens
                expected[row] += weight * dense[slot, tokens[row]]
    embed_row_delta(y, tokens, table, entries(*USES))
    assert_parity(y, expected, steps=2, sums=True)  # rounded after every entry
    assert torch.equal(y[5], before[5])
    assert torch.equal(y[7:], before[7:])


@pytest.mark.triton
def test_head(dtype, assert_parity):
    table, dense = make()
    x, y = torch.randn(9, HIDDEN).to(dtype), torch.randn(9, VOCAB)
    expected, before = y.double(), y.clone()
    for slot, weight, start, count in USES:
        expected[start : start + count] += (
            weight * x[start : start + count].double() @ dense[slot].T
        )
    head_row_delta(y, x, table, entries(*USES))
    assert_parity(y, expected, sums=True)
    untouched = expected == before.double()
    assert torch.equal(y[untouched], before[untouched])


@pytest.mark.skipif(native.lib is None, reason="graphs record native kernels")
def test_a_recorded_head_serves_what_is_resident_later():
    table, dense = make()
    x, y, static = torch.randn(2, HIDDEN).bfloat16(), torch.zeros(2, VOCAB), entries((3, 1.0, 0, 2))
    with capture(MemoryPool()) as calls:
        head_row_delta(y, x, table, static)
    assert not y.any()
    table.set(3, table.rows[2])
    Graph(calls).replay()
    torch.testing.assert_close(y.double(), x.double() @ dense[2].T, rtol=1e-5, atol=1e-5)
