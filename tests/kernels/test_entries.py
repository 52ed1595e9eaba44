from __future__ import annotations

import numpy as np
import pytest
import torch

from turret_kernels.entries import Entries, cover_rows, cut_tiles


def int32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_a_run_is_cut_into_tiles():
    found = cut_tiles(int32(2, 40), int32(35, 1), 16)
    assert found.tolist() == [[2, 16, 0, 1], [18, 16, 0, 1], [34, 3, 0, 1], [40, 1, 1, 1]]


def test_stacked_entries_share_their_tiles():
    found = cut_tiles(int32(0, 3, 3, 3, 20), int32(1, 17, 17, 17, 2), 16)
    assert found.tolist() == [[0, 1, 0, 1], [3, 16, 1, 3], [19, 1, 1, 3], [20, 2, 4, 1]]


def test_runs_come_in_any_order():
    assert cut_tiles(int32(5, 0), int32(2, 3), 16).tolist() == [[5, 2, 0, 1], [0, 3, 1, 1]]


@pytest.mark.parametrize("block", [1, 16, 64])
def test_every_row_meets_its_entries_once(block: int):
    rng = np.random.default_rng(0)
    starts, counts, row = [], [], 0
    for _ in range(20):
        rows, stacked = int(rng.integers(1, 100)), int(rng.integers(1, 4))
        starts += [row] * stacked
        counts += [rows] * stacked
        row += rows + int(rng.integers(0, 3))
    met = np.zeros((row + 3, len(starts)), dtype=int)
    for first, rows, entry, entries in cut_tiles(int32(*starts), int32(*counts), block):
        assert 1 <= rows <= block
        met[first : first + rows, entry : entry + entries] += 1
    expected = np.zeros_like(met)
    for i, (start, count) in enumerate(zip(starts, counts, strict=True)):
        expected[start : start + count, i] = 1
    assert (met == expected).all()


def test_a_cover_has_the_rows_between_too():
    found = cover_rows(int32(19, 2, 2), int32(1, 16, 16), 16, 40)
    assert found.tolist() == [
        [0, 2, 0, 0],
        [2, 16, 1, 2],
        [18, 1, 0, 0],
        [19, 1, 0, 1],
        [20, 16, 0, 0],
        [36, 4, 0, 0],
    ]
    assert cover_rows(int32(), int32(), 16, 3).tolist() == [[0, 3, 0, 0]]
    assert cover_rows(int32(0), int32(5), 16, 5).tolist() == [[0, 5, 0, 1]]


@pytest.mark.parametrize(
    ("starts", "counts"),
    [((0, 0), (2, 3)), ((0, 1), (2, 2)), ((0, 4, 0), (2, 1, 2))],
    ids=["one longer", "overlap", "not neighbours"],
)
def test_entries_that_share_some_rows_only_are_refused(
    starts: tuple[int, ...], counts: tuple[int, ...]
):
    with pytest.raises(ValueError, match="share some of their rows"):
        cut_tiles(int32(*starts), int32(*counts), 16)


def test_no_entries_no_tiles():
    none = torch.zeros(0, dtype=torch.int32)
    assert Entries(none, torch.zeros(0), none, none).tiles(16).shape == (0, 4)


def test_buffers_hold_other_entries_at_the_same_place():
    buffers = Entries.buffers(6, max_tiles=4, num_sites=2, device=torch.device("cpu"))
    tiles = buffers.tiles(16)
    assert tiles.tolist() == [[0, 0, 0, 0]] * 4
    first = Entries(
        torch.tensor([3, 5]).int(),
        torch.tensor([1.0, 0.5]),
        torch.tensor([0, 4]).int(),
        torch.tensor([4, 20]).int(),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    )
    buffers.assign(first)
    assert buffers.tiles(16) is tiles
    assert tiles.tolist() == [[0, 4, 0, 1], [4, 16, 1, 1], [20, 4, 1, 1], [0, 0, 0, 0]]
    assert len(buffers) == 2
    assert buffers.slot[:2].equal(first.slot)
    assert buffers.by_site is not None
    assert buffers.by_site[:, :2].equal(first.by_site)
    one = torch.tensor([1]).int()
    buffers.assign(Entries(one, torch.tensor([2.0]), one, one))
    assert tiles.tolist() == [[1, 1, 0, 1], *[[0, 0, 0, 0]] * 3]
    assert buffers.depth == 1
    assert buffers.by_site is None
    assert buffers.weight[0] == 2


def test_weights_of_every_site_begin_where_16_bytes_do():
    """Triton compiles a kernel again for a pointer that is not aligned."""
    row, by_site = torch.arange(3).int(), torch.rand(2, 3)
    host = Entries(row, torch.ones(3), row, torch.ones(3).int(), by_site)
    moved = host.to(torch.device("meta")).by_site
    buffers = Entries.buffers(3, max_tiles=3, num_sites=2, device=torch.device("cpu"))
    buffers.assign(host)
    assert moved is not None
    assert buffers.by_site is not None
    assert moved.shape == buffers.by_site.shape == (2, 3)
    assert moved.stride() == buffers.by_site.stride() == (4, 1)
    assert buffers.by_site.equal(by_site)


def test_what_acts_on_every_row():
    start, count = (torch.tensor(x, dtype=torch.int32) for x in ((5, 1, 1), (2, 3, 3)))
    found = Entries(torch.zeros(3, dtype=torch.int32), torch.zeros(3), start, count).of_rows(8)
    assert found.tolist() == [[0, 0], [1, 2], [1, 2], [1, 2], [0, 0], [0, 1], [0, 1], [0, 0]]


def test_buffers_tell_what_acts_on_every_row_at_the_same_place():
    buffers = Entries.buffers(6, max_tiles=4, num_sites=2, device=torch.device("cpu"))
    rows = buffers.of_rows(2)
    assert rows.tolist() == [[0, 0], [0, 0]]
    start, count = torch.tensor([0, 2]).int(), torch.tensor([1, 2]).int()
    buffers.assign(Entries(count, torch.ones(2), start, count))
    assert rows.tolist() == [[0, 1], [0, 0]]
    assert buffers.of_rows(4).tolist() == [[0, 1], [0, 0], [1, 1], [1, 1]]
    assert buffers.of_rows(4).data_ptr() == rows.data_ptr()


@pytest.mark.parametrize(
    ("starts", "depth"), [((0, 1, 2), 1), ((0, 3, 3, 3, 20, 20), 3), ((), 0)], ids=str
)
def test_depth_is_the_longest_stack(starts: tuple[int, ...], depth: int):
    start = torch.tensor(starts, dtype=torch.int32)
    one = torch.ones_like(start)
    assert Entries(one, torch.ones(len(starts)), start, one).depth == depth


def test_entries_are_sent_without_waiting(monkeypatch: pytest.MonkeyPatch):
    """To a GPU, in one transfer from pinned memory; here each side can be seen."""
    sent: list[torch.Tensor] = []

    def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
        sent.append(x)
        return x.to("meta")

    monkeypatch.setattr("turret_kernels.gpu.to_device", send)
    slot = torch.tensor([3, 1, 4, 1, 5], dtype=torch.int32)
    weight = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0])
    entries = Entries(slot, weight, slot, slot).to(torch.device("meta"))
    (both,) = sent
    assert both[0].tolist() == [3, 1, 4, 1, 5, 0, 0, 0]
    assert both[1, :5].view(torch.float32).tolist() == weight.tolist()
    assert (entries.slot.dtype, entries.slot.shape) == (torch.int32, (5,))
    assert (entries.weight.dtype, entries.weight.shape) == (torch.float32, (5,))
    assert entries.weight.storage_offset() * 4 % 16 == 0
