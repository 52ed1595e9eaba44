"""Block-diagonal changes of a linear's input, against the dense matrix in float64."""

import pytest
import torch

from turret_kernels import native, rotation
from turret_kernels.entries import Entries
from turret_kernels.graph import Graph, MemoryPool, capture
from turret_kernels.rotation import BlockTable, rotate

SLOTS = 5  # the last has nothing
BATCHES = {
    "decode": (9, [(0, 1.0, 0, 1), (1, -0.5, 1, 1), (2, 1.0, 2, 3), (4, 1.0, 7, 1)]),
    "prefill": (90, [(0, 1.0, 0, 7), (3, 2.0, 7, 60), (2, 0.0, 70, 20)]),
    "stacked": (6, [(0, 1.0, 0, 4), (1, 0.5, 2, 3), (4, 1.0, 0, 6)]),
    "none": (6, [(4, 1.0, 0, 6)]),
}
# bf16 keeps 8 bits; float32 sums come in another order.
TOLERANCE = {torch.bfloat16: 2**-8, torch.float32: 1e-5}


def entries(rows):
    slot, weight, start, count = zip(*rows, strict=True)
    ints = [torch.tensor(values, dtype=torch.int32) for values in (slot, start, count)]
    return Entries(ints[0], torch.tensor(weight), *ints[1:])


def make(width):
    """Small blocks, large ones, one shared by all, and one as wide as everything."""
    table = BlockTable(SLOTS)
    for slot, (count, size) in enumerate([(width // 5, 5), (width // 20, 20), (1, 10), (1, width)]):
        table.set(slot, torch.randn(count, size, size) / size**0.5)
    return table


def dense(blocks, width):
    return torch.block_diag(*blocks.double().expand(width // blocks.shape[1], -1, -1))


@pytest.fixture(params=["native", "torch"])
def path(request, monkeypatch):
    """Both paths compute the same."""
    if request.param == "torch":
        monkeypatch.setattr(rotation, "lib", None)
    elif native.lib is None:
        pytest.skip("this processor has no native kernels")


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("width", [20, 100, 640])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_rotate(batch, width, dtype):
    tokens, rows = BATCHES[batch]
    table, x = make(width), torch.randn(tokens, width).to(dtype)
    before, want, touched = x.clone(), x.double(), set()
    for slot, weight, start, count in rows:
        if (blocks := table.blocks[slot]) is not None:
            at = slice(start, start + count)
            want[at] += weight * x[at].double() @ dense(blocks, width)
            touched |= set(range(start, start + count))
    found = rotate(x, table, entries(rows))
    assert torch.equal(x, before)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), want, atol=tolerance, rtol=tolerance)
    untouched = [row for row in range(tokens) if row not in touched]
    assert torch.equal(found[untouched], x[untouched])


@pytest.mark.usefixtures("path")
def test_weights_of_a_site():
    """They go before the entries' own."""
    table, x = make(20), torch.randn(3, 20).bfloat16()
    one = rotate(x, table, entries([(0, 9.0, 0, 3)]), torch.tensor([0.5]))
    assert torch.equal(one, rotate(x, table, entries([(0, 0.5, 0, 3)])))


@pytest.mark.usefixtures("path")
def test_a_row_does_not_depend_on_its_batch():
    table, x = make(100), torch.randn(8, 100).bfloat16()
    together = rotate(x, table, entries([(1, 0.7, 0, 8)]))
    for row in range(8):
        alone = rotate(x[row : row + 1], table, entries([(1, 0.7, 0, 1)]))
        assert torch.equal(alone[0], together[row])


@pytest.mark.usefixtures("path")
def test_rows_that_nothing_touches_keep_nan():
    x = torch.full((2, 20), float("nan")).bfloat16()
    assert rotate(x, make(20), entries([(4, 1.0, 0, 2)])).isnan().all()


@pytest.mark.skipif(native.lib is None, reason="graphs record native kernels")
def test_recorded():
    """What is in the slots by then counts."""
    table, x, what = make(20), torch.randn(4, 20).bfloat16(), entries([(0, 1.0, 0, 3)])
    with capture(MemoryPool()) as calls:
        found = rotate(x, table, what)
    table.set(0, torch.randn(1, 20, 20))
    x.copy_(torch.randn(4, 20))
    Graph(calls).replay()
    assert torch.equal(found, rotate(x, table, what))
