"""LoRA factors that PEFT stores in fewer numbers than they have."""

from __future__ import annotations

from torch import Tensor


def pooled(a: Tensor, group: int) -> Tensor:
    """The factor A [rank, in] that reads the input itself, from one that reads it pooled.

    QALoRA (Xu et al., 2023) averages the input over groups; PEFT then multiplies by their number.

    Args:
        a: [rank, in / group].
        group: neighbouring inputs that share a column.
    """
    return a.float().repeat_interleave(group, dim=1) * (a.shape[1] / group)


def block_diagonal(stacked: Tensor, blocks: int) -> Tensor:
    """The matrix [rows, columns] whose diagonal blocks are stored one under the other (BD-LoRA).

    Args:
        stacked: [rows, columns / blocks].
        blocks: number of blocks; divides the rows.
    """
    rows, columns = stacked.shape
    full = stacked.new_zeros(blocks, rows // blocks, blocks, columns)
    full.diagonal(dim1=0, dim2=2).copy_(
        stacked.view(blocks, rows // blocks, columns).permute(1, 2, 0)
    )
    return full.view(rows, blocks * columns)
