"""Which adapter acts on which token rows in one step: what every adapter kernel is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from turret_kernels import gpu


@dataclass(slots=True)
class Entries:
    """Uses of adapters, in the order in which they act.

    The rows of two entries are the same ones, and then the entries are neighbours (an adapter
    stacked on another), or have nothing in common.

    `slot`, `weight` and `by_site` lie where the kernels run; the rest is on the host.

    Attributes:
        slot: int32 [E].
        weight: float32 [E].
        row_start: int32 [E], first token row.
        row_count: int32 [E], at least 1.
        by_site: float32 [P, E], the weights by site where they differ, in the caller's numbering
            of sites; None where `weight` holds everywhere. On a GPU its rows are aligned, too.
        count: int64 [1], E; the tensors may be longer.
    """

    slot: Tensor
    weight: Tensor
    row_start: Tensor
    row_count: Tensor
    by_site: Tensor | None = None
    count: Tensor = field(init=False)
    # Of buffers: shorter tables of tiles are padded, and `by_site` comes and goes.
    _max_tiles: int = field(init=False, default=0)
    _all_sites: Tensor | None = field(init=False, default=None)
    _depth: int | None = field(init=False, default=None)
    _tiles: dict[int, Tensor] = field(init=False, default_factory=dict)
    _covers: dict[int, tuple[int, Tensor]] = field(init=False, default_factory=dict)
    _of_rows: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.count = torch.tensor([self.slot.shape[0]], device="cpu")

    def __len__(self) -> int:
        return int(self.count)

    @classmethod
    def buffers(cls, size: int, max_tiles: int, num_sites: int, device: torch.device) -> Entries:
        """Room for `size` entries that stays where it is, for graphs; see `assign`."""
        host = torch.zeros(2, size, dtype=torch.int32)
        slot, weight = host[0].to(device), torch.zeros(size, device=device)
        entries = cls(slot, weight, *torch.zeros_like(host))
        entries._max_tiles = max_tiles
        entries._all_sites = torch.zeros(num_sites, _aligned(size), device=device)[:, :size]
        return entries

    def assign(self, other: Entries) -> None:
        """Let these buffers hold other entries, which are not more."""
        count = len(other)
        self.slot[:count].copy_(other.slot, non_blocking=True)
        self.weight[:count].copy_(other.weight, non_blocking=True)
        self.row_start[:count], self.row_count[:count] = other.row_start, other.row_count
        self.count[0] = count
        self._depth, self.by_site = None, None
        if other.by_site is not None and self._all_sites is not None:
            self.by_site = self._all_sites
            self.by_site[:, :count].copy_(other.by_site, non_blocking=True)
        for block, tiles in self._tiles.items():
            gpu.fill(tiles, torch.from_numpy(self._cut(block)))
        for block, (num_rows, tiles) in self._covers.items():
            gpu.fill(tiles, torch.from_numpy(self._cover(block, num_rows)))
        if self._of_rows is not None:
            gpu.fill(self._of_rows, torch.from_numpy(self._by_row(len(self._of_rows))))

    def to(self, device: torch.device) -> Entries:
        """The same for kernels on another device; the host does not wait."""
        if device == self.slot.device:
            return self
        count = len(self)
        # In one transfer; both begin at a multiple of 16 bytes: kernels are compiled once for that.
        both = torch.zeros(2, _aligned(count), dtype=torch.int32)
        both[0, :count], both[1, :count] = self.slot, self.weight.view(torch.int32)
        slot, weight = gpu.to_device(both, device)[:, :count]
        by_site = None
        if self.by_site is not None:  # and so does every row of it
            padded = F.pad(self.by_site, (0, _aligned(count) - count))
            by_site = gpu.to_device(padded, device)[:, :count]
        weight = weight.view(torch.float32)
        return Entries(slot, weight, self.row_start, self.row_count, by_site)

    def each(self, weight: Tensor | None = None) -> Iterator[tuple[int, float, slice]]:
        """Slot, weight (float32 [E], where it is not the entries' own) and rows of every entry."""
        columns = self.slot, self.weight if weight is None else weight
        for slot, w, row, rows in zip(
            *(column.tolist() for column in (*columns, self.row_start, self.row_count)),
            strict=True,
        ):
            yield slot, w, slice(row, row + rows)

    def pointers(self, weight: Tensor | None = None) -> tuple[int, int, int, int, int]:
        """What native kernels take: slot, weight, row_start, row_count, count."""
        columns = self.slot, self.weight if weight is None else weight
        slot, w, start, rows, count = (
            x.data_ptr() for x in (*columns, self.row_start, self.row_count, self.count)
        )
        return slot, w, start, rows, count

    @property
    def depth(self) -> int:
        """Most entries that act on one row; a CUDA graph serves steps of one depth."""
        if self._depth is None:
            start = self.row_start.numpy()[: len(self)]
            first = np.flatnonzero(np.diff(start, prepend=-1, append=-1))
            self._depth = int(np.diff(first).max(initial=0))
        return self._depth

    def tiles(self, block: int) -> Tensor:
        """What GPU programs work on: at most `block` rows, and all entries that act on them.

        One program alone writes a tile's rows, entry after entry: stacked adapters need no atomics
        and add up in one order.

        Returns:
            int32 [N, 4] beside `slot`: first row, rows (0: nothing to do), first entry, entries.
        """
        if block not in self._tiles:
            tiles = torch.from_numpy(self._cut(block))
            self._tiles[block] = gpu.to_device(tiles, self.slot.device)
        return self._tiles[block]

    def cover(self, block: int, num_rows: int) -> Tensor:
        """As `tiles`, by first row, for programs that write all rows of a batch.

        Returns:
            int32 [N, 4] beside `slot`; a tile of rows on which nothing acts has no entries. Of
            buffers, which hold steps of more rows too, the last tiles may reach beyond `num_rows`.
        """
        room = max(num_rows, self._max_tiles)
        found = self._covers.get(block)
        if found is None or found[0] != room:
            tiles = torch.from_numpy(self._cover(block, room))
            found = self._covers[block] = room, gpu.to_device(tiles, self.slot.device)
        return found[1][:num_rows]  # a row is the least that a tile has

    def of_rows(self, num_rows: int) -> Tensor:
        """What acts on every row, for GPU programs that write all rows of a batch.

        Returns:
            int32 [num_rows, 2] beside `slot`: first entry, entries (0: nothing acts).
        """
        if self._of_rows is None or len(self._of_rows) < num_rows:
            pairs = torch.from_numpy(self._by_row(max(num_rows, self._max_tiles)))
            self._of_rows = gpu.to_device(pairs, self.slot.device)
        return self._of_rows[:num_rows]

    def _cut(self, block: int) -> np.ndarray:
        count = len(self)
        tiles = cut_tiles(self.row_start.numpy()[:count], self.row_count.numpy()[:count], block)
        missing = max(0, self._max_tiles - len(tiles))
        return np.pad(tiles, ((0, missing), (0, 0))) if missing else tiles

    def _cover(self, block: int, num_rows: int) -> np.ndarray:
        count = len(self)
        start, rows = self.row_start.numpy()[:count], self.row_count.numpy()[:count]
        tiles = cover_rows(start, rows, block, num_rows)
        missing = num_rows - len(tiles) if self._max_tiles else 0
        return np.pad(tiles, ((0, missing), (0, 0))) if missing else tiles

    def _by_row(self, num_rows: int) -> np.ndarray:
        count = len(self)
        rows = cut_tiles(self.row_start.numpy()[:count], self.row_count.numpy()[:count], 1)
        pairs = np.zeros((num_rows, 2), dtype=np.int32)
        pairs[rows[:, 0]] = rows[:, 2:]
        return pairs


def _aligned(size: int) -> int:
    """Numbers of four bytes after which the next row begins at a multiple of 16 bytes."""
    return -(-size // 4) * 4


def cut_tiles(row_start: np.ndarray, row_count: np.ndarray, block: int) -> np.ndarray:
    """See `Entries.tiles`; int32 [E] each -> int32 [N, 4].

    Raises:
        ValueError: entries share some of their rows only, or are not neighbours.
    """
    first = np.flatnonzero(np.diff(row_start, prepend=-1))  # of each run of rows
    start, rows = row_start[first], row_count[first]
    entries = np.diff(first, append=len(row_start))
    by_start = np.argsort(start)
    ends = (start + rows)[by_start]
    if (row_count != rows.repeat(entries)).any() or (ends[:-1] > start[by_start][1:]).any():
        raise ValueError("entries share some of their rows only, or are not neighbours")
    pieces = -(-rows // block)
    run = np.arange(len(first)).repeat(pieces)
    offset = (np.arange(len(run)) - (np.cumsum(pieces) - pieces)[run]) * block
    left = np.minimum(rows[run] - offset, block)
    return np.stack([start[run] + offset, left, first[run], entries[run]], axis=1).astype(np.int32)


def cover_rows(
    row_start: np.ndarray, row_count: np.ndarray, block: int, num_rows: int
) -> np.ndarray:
    """See `Entries.cover`; the rows of the entries are among the first `num_rows`."""
    tiles = cut_tiles(row_start, row_count, block)
    edges = np.zeros(num_rows + 1, dtype=np.int64)  # +1 where a run begins, -1 behind its end
    np.add.at(edges, tiles[:, 0], 1)
    np.add.at(edges, tiles[:, 0] + tiles[:, 1], -1)
    bare = np.flatnonzero(np.diff(np.cumsum(edges)[:-1] == 0, prepend=False, append=False))
    begin, end = bare[::2], bare[1::2]
    gaps = cut_tiles(begin, end - begin, block)
    gaps[:, 2:] = 0
    every = np.concatenate([tiles, gaps])
    return every[np.argsort(every[:, 0])]
