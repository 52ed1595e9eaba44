"""Which tokens may come next: a bit per token, from a grammar on the host."""

from __future__ import annotations

import torch
from torch import Tensor

from turret_kernels import gpu


def apply_token_mask(logits: Tensor, rows: Tensor, mask: Tensor) -> None:
    """Set the logits of tokens that a mask does not allow to -inf, in place.

    Args:
        logits: float32 [R, V].
        rows: int32 [M], rows of the logits, each at most once; -1 is none, to fill up a buffer.
        mask: int32 [M, ceil(V / 32)]: token i is allowed if bit `i % 32` of word `i // 32` is set.
    """
    if gpu.takes(logits):
        from turret_kernels.gpu import token_mask

        token_mask.apply_token_mask(logits, rows, mask)
    else:
        apply_token_mask_reference(logits, rows, mask)


def apply_token_mask_reference(logits: Tensor, rows: Tensor, mask: Tensor) -> None:
    """Byte by byte."""
    bits = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=mask.device)
    allowed = (mask.contiguous().view(torch.uint8)[:, :, None] & bits) != 0
    banned = ~allowed.flatten(1)[:, : logits.shape[1]]
    for i, row in enumerate(rows.tolist()):
        if row >= 0:
            logits[row].masked_fill_(banned[i], float("-inf"))
