"""Block-diagonal changes of a linear's input, against the dense matrix in float64."""

import random

import pytest
import torch
from tests.kernels import conftest

from turret_kernels import native
from turret_kernels.entries import Entries
from turret_kernels.graph import Graph, MemoryPool, capture
from turret_kernels.rotation import BlockTable, rotate

SLOTS = 5  # the last has nothing
BATCHES = {
    "decode": (9, [(0, 1.0, 0, 1), (1, -0.5, 1, 1), (2, 1.0, 2, 3), (4, 1.0, 7, 1)]),
    "prompts": (90, [(0, 1.0, 0, 7), (3, 2.0, 7, 60), (2, 0.0, 70, 20)]),
    "stacked": (6, [(0, 1.0, 0, 4), (1, 0.5, 0, 4), (4, 1.0, 0, 4), (3, -1.0, 5, 1)]),
    "absent": (6, [(4, 1.0, 0, 6)]),
}


@pytest.fixture(params=dict.fromkeys([*conftest.DTYPES, torch.float32]), ids=str)
def dtype(request):
    """float32 is what a CPU serves on its torch path."""
    return request.param


def entries(rows):
    slot, weight, start, count = zip(*rows, strict=True)
    host = [torch.tensor(v, dtype=torch.int32, device="cpu") for v in (start, count)]
    slot = torch.tensor(slot, dtype=torch.int32)
    return Entries(slot, torch.tensor(weight, dtype=torch.float32), *host)


def make(width):
    """Small blocks, larger ones, one shared by all, and one as wide as everything."""
    table = BlockTable(SLOTS)
    for slot, (count, size) in enumerate([(width // 5, 5), (width // 20, 20), (1, 10), (1, width)]):
        table.set(slot, torch.randn(count, size, size) / size**0.5)
    return table


def dense(blocks, width):
    return torch.block_diag(*blocks.double().expand(width // blocks.shape[1], -1, -1))


def expected(x, table, rows):
    """In float64, and which rows it changes."""
    want, touched = x.double(), torch.zeros(len(x), dtype=torch.bool)
    for slot, weight, start, count in rows:
        if (blocks := table.blocks[slot]) is not None:
            at = slice(start, start + count)
            want[at] += weight * x[at].double() @ dense(blocks, x.shape[1])
            touched[at] = True
    return want, touched


def check(x, table, rows, assert_parity):
    before, (want, touched) = x.clone(), expected(x, table, rows)
    found = rotate(x, table, entries(rows))
    assert torch.equal(x, before)
    assert_parity(found, want, sums=True)
    assert torch.equal(found[~touched], x[~touched])


@pytest.mark.triton
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("width", [20, 100, 160])
def test_rotate(batch, width, dtype, assert_parity):
    tokens, rows = BATCHES[batch]
    check(torch.randn(tokens, width).to(dtype), make(width), rows, assert_parity)


@pytest.mark.triton
@pytest.mark.parametrize(
    ("width", "size"), [(96, 32), (192, 64), (128, 4), (7, 7), (3, 1), (72, 36)]
)
def test_blocks_of_any_size(width, size, dtype, assert_parity):
    table = BlockTable(SLOTS)
    table.set(0, torch.randn(width // size, size, size) / size**0.5)
    table.set(1, torch.randn(1, size, size) / size**0.5)
    rows = [(0, 0.7, 0, 2), (1, -2.0, 3, 1)]
    check(torch.randn(5, width).to(dtype), table, rows, assert_parity)


@pytest.mark.triton
def test_a_long_prompt(dtype, assert_parity):
    rows = [(1, 1.0, 3, 130), (0, 0.5, 3, 130), (2, 1.0, 140, 65)]
    check(torch.randn(290, 60).to(dtype), make(60), rows, assert_parity)


@pytest.mark.triton
@pytest.mark.parametrize("seed", range(6))
def test_any_batch(seed, dtype, assert_parity):
    """Runs of rows with gaps, in any order, of up to three entries each."""
    chance = random.Random(seed)
    runs, row = [], 0
    for _ in range(chance.randint(1, 6)):
        row += chance.choice([0, 0, 1, 5])
        count = chance.choice([1, 1, 2, 15, 16, 17])
        slots = [chance.randrange(SLOTS) for _ in range(chance.randint(1, 3))]
        runs.append([(slot, chance.uniform(-2, 2), row, count) for slot in slots])
        row += count
    chance.shuffle(runs)
    x = torch.randn(row + chance.randrange(3), 40).to(dtype)
    check(x, make(40), [entry for run in runs for entry in run], assert_parity)


@pytest.mark.triton
def test_weights_of_a_site(dtype):
    """They go before the entries' own."""
    table, x = make(20), torch.randn(3, 20).to(dtype)
    one = rotate(x, table, entries([(0, 9.0, 0, 3)]), torch.tensor([0.5]))
    assert torch.equal(one, rotate(x, table, entries([(0, 0.5, 0, 3)])))


# Products of float32 in torch, and in the interpreter's numpy, depend on where a row lies.
@pytest.mark.triton
@pytest.mark.parametrize("dtype", [d for d in conftest.DTYPES if d != torch.float32], ids=str)
def test_a_row_does_not_depend_on_its_batch(dtype):
    table, x = make(100), torch.randn(8, 100).to(dtype)
    together = rotate(x, table, entries([(1, 0.7, 0, 8)]))
    for row in range(8):
        alone = rotate(x[row : row + 1], table, entries([(1, 0.7, 0, 1)]))
        assert torch.equal(alone[0], together[row])


@pytest.mark.triton
def test_rows_that_nothing_touches_keep_nan(dtype):
    """And give it to no other row."""
    x = torch.full((4, 20), float("nan")).to(dtype)
    x[1:3] = 1.0
    found = rotate(x, make(20), entries([(0, 1.0, 1, 1), (4, 1.0, 3, 1)]))
    assert found[[0, 3]].isnan().all()
    assert found[1:3].isfinite().all()


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
