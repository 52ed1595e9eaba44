"""Changed rows of the embedding and of the head, by slot: `W[ids] += w * delta`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.entries import Entries
from turret_kernels.native import lib


@dataclass(frozen=True, slots=True)
class ChangedRows:
    """Rows of a matrix, on the device.

    Attributes:
        ids: int64 [r], ascending, without repetition.
        delta: float32 [r, K]; on a GPU it begins at a multiple of 16 bytes.
    """

    ids: Tensor
    delta: Tensor


@dataclass(slots=True)
class RowTable:
    """The changed rows of every slot. Change them with `set` alone.

    Attributes:
        num_slots: S.
        device: where the rows lie; None means torch's default.
        rows: one per slot, or None.
        pointers: int64 [S, 3] beside them: where ids and delta lie, and r; for the kernels.
    """

    num_slots: int
    device: torch.device | None = None
    rows: list[ChangedRows | None] = field(init=False)
    pointers: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.rows = [None] * self.num_slots
        self.pointers = torch.zeros(self.num_slots, 3, dtype=torch.int64, device=self.device)

    def set(self, slot: int, rows: ChangedRows | None) -> None:
        """Give a slot its rows, or none; no step may be using the slot."""
        places = (0, 0, 0)
        if rows is not None:
            assert rows.ids.is_contiguous()
            assert rows.delta.is_contiguous()
            assert rows.delta.device.type == "cpu" or rows.delta.data_ptr() % 16 == 0
            places = rows.ids.data_ptr(), rows.delta.data_ptr(), rows.ids.shape[0]
        self.pointers[slot] = torch.tensor(places)
        self.rows[slot] = rows


def embed_row_delta(
    y: Tensor,
    token_ids: Tensor,
    table: RowTable,
    entries: Entries,
    weight: Tensor | None = None,
) -> None:
    """`y[row] += w * delta[i]` where `token_ids[row] == ids[i]`, for each entry's rows, in place.

    Args:
        y: [T, K], the embedded tokens.
        token_ids: int64 [T], contiguous; negative ones are virtual tokens and match nothing.
        table: the changed rows.
        entries: what acts where.
        weight: float32 [E], where it differs from `entries.weight`.
    """
    if gpu.takes(y):
        from turret_kernels.gpu import row_delta

        weight = entries.weight if weight is None else weight
        row_delta.embed_row_delta(y, token_ids, table, entries, weight)
        return
    for changed, w, rows in _present(table, entries, weight):
        tokens = token_ids[rows]
        place = torch.searchsorted(changed.ids, tokens).clamp_(max=changed.ids.shape[0] - 1)
        hit = (changed.ids[place] == tokens).nonzero().flatten()
        if len(hit):
            part = y[rows]
            part[hit] = part[hit].float().add_(changed.delta[place[hit]], alpha=w).to(y.dtype)


def head_row_delta(
    y: Tensor,
    x: Tensor,
    table: RowTable,
    entries: Entries,
    weight: Tensor | None = None,
) -> None:
    """`y[row, ids] += w * x[row] @ delta.T` for the rows of each entry, in place.

    Args:
        y: float32 [T, vocab], contiguous.
        x: [T, K], contiguous.
        table: the changed rows.
        entries: what acts where.
        weight: float32 [E], where it differs from `entries.weight`.
    """
    if gpu.takes(x):
        from turret_kernels.gpu import row_delta

        weight = entries.weight if weight is None else weight
        row_delta.head_row_delta(y, x, table, entries, weight)
        return
    if lib is None or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        for changed, w, rows in _present(table, entries, weight):
            delta = x[rows].float() @ changed.delta.T
            y[rows].index_add_(1, changed.ids, delta, alpha=w)
        return
    lib.turret_row_delta(
        y.data_ptr(),
        y.shape[1],
        x.data_ptr(),
        x.shape[1],
        table.pointers.data_ptr(),
        *entries.pointers(weight),
    )


def _present(
    table: RowTable, entries: Entries, weight: Tensor | None
) -> Iterator[tuple[ChangedRows, float, slice]]:
    """Changed rows, weight and token rows of the entries that have something."""
    for slot, w, rows in entries.each(weight):
        if (changed := table.rows[slot]) is not None:
            yield changed, w, rows
