"""Block-diagonal changes of a linear's input by slot: `x[rows] += w * x[rows] D`, in a copy."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from turret_kernels import gpu, native
from turret_kernels.entries import Entries
from turret_kernels.native import lib


@dataclass(slots=True)
class BlockTable:
    """The block-diagonal matrices of every slot at one linear. Change them with `set` alone.

    Attributes:
        num_slots: S.
        device: where the blocks lie; None means torch's default.
        blocks: one per slot, float32 [K / b, b, b] (or [1, b, b], the same block everywhere), or
            None. A row of inputs stands left of its block.
        pointers: int64 [S, 3] beside them: where the blocks lie, b, and how far apart they are;
            b is 0 where a slot has none. The kernels read it.
    """

    num_slots: int
    device: torch.device | None = None
    blocks: list[Tensor | None] = field(init=False)
    pointers: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = [None] * self.num_slots
        self.pointers = torch.zeros(self.num_slots, 3, dtype=torch.int64, device=self.device)

    def set(self, slot: int, blocks: Tensor | None) -> None:
        """Give a slot its blocks, or none; no step may be using the slot."""
        places = (0, 0, 0)
        if blocks is not None:
            assert blocks.is_contiguous()
            assert blocks.dtype == torch.float32
            size = blocks.shape[1]
            places = blocks.data_ptr(), size, size * size if blocks.shape[0] > 1 else 0
        self.pointers[slot] = torch.tensor(places)
        self.blocks[slot] = blocks


def rotate(x: Tensor, table: BlockTable, entries: Entries, weight: Tensor | None = None) -> Tensor:
    """`x + sum(w * x D[slot])` over the entries of each row; every D reads `x` as it is.

    Args:
        x: [T, K], contiguous.
        table: of K features.
        entries: what acts where.
        weight: float32 [E], where it differs from `entries.weight`.

    Returns:
        A new tensor [T, K] in the dtype of `x`.
    """
    if gpu.takes(x):
        from turret_kernels.gpu import rotation as gpu_rotation

        weight = entries.weight if weight is None else weight
        return gpu_rotation.rotate(x, table, entries, weight)
    rows, width = x.shape
    if lib is None or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return rotate_reference(x, table, entries, weight)
    out = native.allocate((rows, width), x.dtype)
    lib.turret_rotate(
        out.data_ptr(),
        x.data_ptr(),
        rows,
        width,
        table.pointers.data_ptr(),
        *entries.pointers(weight),
    )
    return out


def rotate_reference(
    x: Tensor, table: BlockTable, entries: Entries, weight: Tensor | None = None
) -> Tensor:
    """The same in torch, entry by entry; rounded once, at the end."""
    wide, out = x.float(), x.float().clone()
    for slot, w, rows in entries.each(weight):
        blocks = table.blocks[slot]
        if blocks is not None:
            parts = wide[rows].unflatten(1, (-1, 1, blocks.shape[1]))  # [T, K / b, 1, b]
            out[rows] += w * (parts @ blocks).flatten(1)
    return out.to(x.dtype)
