import pytest
import torch
from tests.kernels import conftest

from turret_kernels import native
from turret_kernels.elementwise import OffsetTable, ScaleTable, add_offset, scale
from turret_kernels.entries import Entries
from turret_kernels.graph import Graph, MemoryPool, capture
from turret_kernels.testing import exact

SLOTS = 5  # slots 3 and 4 have nothing in any table
BATCHES = {
    "decode": (9, [(0, 1.0, 0, 1), (1, 0.5, 1, 1), (2, -2.0, 2, 3), (3, 1.0, 7, 1)]),
    "prefill": (45, [(0, 1.0, 0, 7), (2, 0.5, 7, 30), (1, 3.0, 40, 5)]),
    "stacked": (40, [(0, 1.0, 0, 20), (1, -0.5, 0, 20), (2, 2.0, 20, 7), (3, 1.0, 20, 7)]),
    "absent": (6, [(3, 1.0, 0, 6), (4, 2.0, 0, 6)]),
    "weight 0": (6, [(1, 0.0, 0, 6)]),
}
# Columns before, columns of the site, columns behind it.
PLACES = [(0, 48, 0), (16, 64, 32), (24, 50, 7), (3, 1, 0), (0, 576, 0)]  # 28 rows of 576 a chunk
PAIRED = [(0, 64, 0, 1), (16, 64, 32, 8), (5, 128, 11, 32), (0, 6, 3, 3), (7, 100, 0, 25)]


@pytest.fixture(params=dict.fromkeys([*conftest.DTYPES, torch.float32]), ids=str)
def dtype(request):
    """Of `y`: logits are float32 on every path."""
    return request.param


def entries(rows):
    slot, weight, start, count = zip(*rows, strict=True)
    host = [torch.tensor(v, dtype=torch.int32, device="cpu") for v in (start, count)]
    slot = torch.tensor(slot, dtype=torch.int32)
    return Entries(slot, torch.tensor(weight, dtype=torch.float32), *host)


def table(*sizes):
    """Rows of the slots that are there; NaN in the others, which nobody may read."""
    vectors = torch.full((SLOTS, *sizes), float("nan"))
    vectors[:3] = torch.randn(3, *sizes)
    return vectors


def presence():
    return torch.tensor([1, 1, 1, 0, 0], dtype=torch.uint8)


def offsets(width):
    return OffsetTable(table(width), presence())


def scales(width, distance=0):
    """Slot 1 has no pairs, the others have; what a slot without pairs has in `turn` is NaN."""
    turn = table(width)
    distances = torch.tensor([distance, 0, distance, 7, 7], dtype=torch.int32)
    turn[1] = float("nan")
    if not distance:
        turn.fill_(float("nan"))
    return ScaleTable(table(width), turn, distances, presence())


def expected(y, rows, column, width, change):
    """One number after the other in float64, rounded to a 16-bit dtype of `y` after every entry."""
    y = exact(y.clone())
    for slot, weight, start, count in rows:
        if slot > 2:
            continue
        for row in range(start, start + count):
            before = [float(v) for v in y[row, column : column + width]]
            after = [v + weight * change(slot, before, i) for i, v in enumerate(before)]
            y[row, column : column + width] = torch.tensor(after, dtype=torch.float64).to(y.dtype)
    return y


def offset_change(found):
    vectors = found.vectors.double().tolist()
    return lambda slot, before, i: vectors[slot][i]


def scale_change(found):
    gain, turn = found.gain.double().tolist(), found.turn.double().tolist()

    def change(slot, before, i):
        changed = gain[slot][i] * before[i]
        distance = int(found.distance[slot])
        if distance:
            is_first = i % (2 * distance) < distance
            changed += turn[slot][i] * before[i + distance if is_first else i - distance]
        return changed

    return change


def assert_same(y, want):
    """At a rounding edge the sum in float32 may fall on the other side, stacked rows twice."""
    rtol = 1e-5 if y.dtype == torch.float32 else torch.finfo(y.dtype).eps
    torch.testing.assert_close(y, want, rtol=rtol, atol=rtol / 8, check_dtype=False)


@pytest.mark.triton
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("place", PLACES, ids=str)
class TestAgainstTheFormula:
    def test_offset(self, batch, place, dtype, assert_parity):
        tokens, rows = BATCHES[batch]
        before, width, behind = place
        found = offsets(width)
        y = torch.randn(tokens, before + width + behind).to(dtype)
        want = expected(y, rows, before, width, offset_change(found))
        add_offset(y, found, entries(rows), before)
        assert_parity(y, want, steps=2, sums=True)

    def test_scale(self, batch, place, dtype, assert_parity):
        tokens, rows = BATCHES[batch]
        before, width, behind = place
        found = scales(width)
        y = torch.randn(tokens, before + width + behind).to(dtype)
        want = expected(y, rows, before, width, scale_change(found))
        scale(y, found, entries(rows), before)
        assert_parity(y, want, steps=2, sums=True)


@pytest.mark.triton
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("place", PAIRED, ids=str)
def test_pairs(batch, place, dtype, assert_parity):
    tokens, rows = BATCHES[batch]
    before, width, behind, distance = place
    width -= width % (2 * distance)
    found = scales(width, distance)
    y = torch.randn(tokens, before + width + behind).to(dtype)
    want = expected(y, rows, before, width, scale_change(found))
    scale(y, found, entries(rows), before)
    assert_parity(y, want, steps=2, sums=True)


@pytest.mark.triton
def test_what_is_not_the_sites_stays_bit_for_bit(dtype):
    """Columns beside it and rows without an entry, NaN among them."""
    y = torch.randn(9, 90).to(dtype)
    y[:, 0] = y[:, 89] = y[0] = float("nan")
    for act, found in ((add_offset, offsets(50)), (scale, scales(48, 8))):
        after = y.clone()
        act(after, found, entries([(0, 1.0, 3, 4)]), 24)
        inside = torch.zeros_like(y, dtype=torch.bool)
        inside[3:7, 24 : 24 + (50 if act is add_offset else 48)] = True
        same = (after == y) | (after.isnan() & y.isnan())
        assert same[~inside].all()
        assert not same[inside].all()


@pytest.mark.triton
def test_weights_of_their_own(dtype):
    """Per entry, in place of the entries' weights."""
    rows = [(0, 9.0, 1, 3), (2, 9.0, 1, 3)]
    own = [(0, 0.5, 1, 3), (2, -1.0, 1, 3)]
    weight = torch.tensor([0.5, -1.0])
    for act, found, change in (
        (add_offset, offsets(33), offset_change),
        (scale, scales(32, 8), scale_change),
    ):
        width = 33 if act is add_offset else 32
        y = torch.randn(5, 40).to(dtype)
        want = expected(y, own, 2, width, change(found))
        act(y, found, entries(rows), 2, weight)
        assert_same(y, want)


@pytest.mark.skipif(native.lib is None, reason="graphs record native kernels")
def test_more_room_than_entries():
    """A graph's entries are longer than what is in them."""
    found, y = offsets(32), torch.zeros(6, 32)
    longer = entries([(0, 1.0, 0, 2), (1, 1.0, 3, 2), (2, 1.0, 0, 6)])
    longer.count[0] = 1
    add_offset(y, found, longer)
    assert torch.equal(y[:2], found.vectors[0].expand(2, 32))
    assert not y[2:].any()


@pytest.mark.triton
def test_a_row_does_not_depend_on_its_batch(dtype):
    x = torch.randn(90, 640).to(dtype)
    for act, found in ((add_offset, offsets(640)), (scale, scales(640)), (scale, scales(640, 8))):
        whole = x.clone()
        act(whole, found, entries([(0, 0.7, 0, 50), (0, 0.7, 51, 29), (2, 1.0, 51, 29)]))
        for row, rows in ((21, [(0, 0.7, 0, 1)]), (62, [(0, 0.7, 0, 1), (2, 1.0, 0, 1)])):
            alone = x[row : row + 1].clone()
            act(alone, found, entries(rows))
            assert torch.equal(alone[0], whole[row])


@pytest.mark.skipif(native.lib is None, reason="graphs record native kernels")
def test_a_replay_reads_the_entries_of_its_time(dtype):
    """Recorded for some adapters, replayed for others, and for other values of the same slots."""
    shift, turned = offsets(50), scales(48, 8)
    static = entries([(0, 1.0, 0, 3), (1, 1.0, 3, 2), (0, 1.0, 0, 1), (0, 1.0, 0, 1)])
    static.count[0] = 2
    y = torch.randn(8, 60).to(dtype)

    def act(y, entries):
        add_offset(y, shift, entries, 10)
        scale(y, turned, entries, 4)

    with capture(MemoryPool()) as calls:
        act(y, static)
    graph = Graph(calls)
    for rows in ([(2, 0.5, 1, 4)], [(0, 1.0, 0, 8), (1, -1.0, 2, 2), (2, 2.0, 2, 6)], []):
        for name, value in zip(
            ("slot", "weight", "row_start", "row_count"), zip(*rows, strict=True), strict=False
        ):
            getattr(static, name)[: len(rows)] = torch.tensor(value)
        static.count[0] = len(rows)
        x = torch.randn(8, 60).to(dtype)
        y.copy_(x)
        graph.replay()
        if rows:
            act(x, entries(rows))
        assert torch.equal(y, x)
        shift.vectors[0].mul_(2)  # another adapter in the slot
