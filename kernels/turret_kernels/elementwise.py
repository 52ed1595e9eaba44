"""Elementwise adapters by slot: scales, paired rotations and offsets of single rows.

Vectors lie in tables of float32 with one row per slot. A row of the batch may lie in several
entries (stacked adapters); slots that have nothing in a table are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.entries import Entries
from turret_kernels.native import lib


@dataclass(slots=True)
class OffsetTable:
    """What to add at one site.

    Attributes:
        vectors: float32 [S, N].
        present: uint8 [S] beside the vectors; 0 = the slot has none here.
    """

    vectors: Tensor
    present: Tensor


@dataclass(slots=True)
class ScaleTable:
    """How to scale at one site.

    Attributes:
        gain: float32 [S, N], the scale minus one.
        turn: float32 [S, N], what comes in from a feature's partner.
        distance: int32 [S] beside the gain: 0 = no partner, else `turn` is read, and the partner
            of a feature is so much further on in the first half of its group of 2 * distance
            features, or so much before in the second half.
        present: uint8 [S] beside the gain; 0 = the slot has none here.
    """

    gain: Tensor
    turn: Tensor
    distance: Tensor
    present: Tensor


def add_offset(
    y: Tensor,
    table: OffsetTable,
    entries: Entries,
    column: int = 0,
    weight: Tensor | None = None,
) -> None:
    """`y[row, column : column + N] += w * table[slot]` for the rows of each entry, in place.

    Args:
        y: [T, M], contiguous.
        table: of N <= M - column features.
        entries: what acts where.
        column: where the site's features begin.
        weight: float32 [E], where it differs from `entries.weight`.
    """
    if gpu.takes(y):
        from turret_kernels.gpu import elementwise

        elementwise.add_offset(
            y, table, entries, column, entries.weight if weight is None else weight
        )
        return
    size = table.vectors.shape[1]
    if not _native(y) or lib is None:
        for slot, w, rows in _present(table.present, entries, weight):
            part = y[rows, column : column + size]
            part.copy_(part.float().add_(table.vectors[slot], alpha=w))
        return
    lib.turret_offset(
        y.data_ptr(),
        y.shape[1],
        column,
        size,
        table.vectors.data_ptr(),
        table.present.data_ptr(),
        *entries.pointers(weight),
        y.dtype == torch.float32,
    )


def scale(
    y: Tensor,
    table: ScaleTable,
    entries: Entries,
    column: int = 0,
    weight: Tensor | None = None,
) -> None:
    """`y += w * (gain * y + turn * partner(y))` for the rows of each entry, in place.

    Arguments as in `add_offset`. Entries that act on the same row have at most one distance.
    """
    if gpu.takes(y):
        from turret_kernels.gpu import elementwise

        elementwise.scale(y, table, entries, column, entries.weight if weight is None else weight)
        return
    size = table.gain.shape[1]
    if not _native(y) or lib is None:
        for slot, w, rows in _present(table.present, entries, weight):
            part = y[rows, column : column + size]
            wide, change = part.float(), table.gain[slot] * part.float()
            if distance := int(table.distance[slot]):
                pairs = wide.view(wide.shape[0], -1, 2, distance)
                change += table.turn[slot] * pairs.flip(2).reshape(wide.shape)
            part.copy_(wide.add_(change, alpha=w))
        return
    lib.turret_scale(
        y.data_ptr(),
        y.shape[1],
        column,
        size,
        table.gain.data_ptr(),
        table.turn.data_ptr(),
        table.distance.data_ptr(),
        table.present.data_ptr(),
        *entries.pointers(weight),
        y.dtype == torch.float32,
    )


def _native(y: Tensor) -> bool:
    on_cpu = lib is not None and y.device.type == "cpu" and y.is_contiguous()
    return on_cpu and y.dtype in (torch.bfloat16, torch.float32)


def _present(
    present: Tensor, entries: Entries, weight: Tensor | None
) -> Iterator[tuple[int, float, slice]]:
    """Slot, weight and rows of the entries that have something."""
    for slot, w, rows in entries.each(weight):
        if present[slot]:
            yield slot, w, rows
