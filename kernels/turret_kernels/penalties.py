"""Changes of single logits, for a whole batch at once: penalties, biases and bans of tokens."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turret_kernels import gpu


def apply_penalties(logits: Tensor, changes: Tensor) -> None:
    """Penalise tokens, in place: repetition (CTRL, eq. 4), then penalty, then bias.

    `x / r` where `x > 0`, else `x * r`; then `- penalty` (OpenAI's presence and frequency
    penalties, added up); then `+ bias`.

    Args:
        logits: float32 [R, V].
        changes: int32 [5, E] of `changes_table`, on the device of the logits.
    """
    if gpu.takes(logits):
        from turret_kernels.gpu import penalties

        penalties.apply_penalties(logits, changes)
    else:
        apply_penalties_reference(logits, changes)


def apply_penalties_reference(logits: Tensor, changes: Tensor) -> None:
    """One gather and one scatter."""
    changes = changes[:, changes[0] >= 0]
    row, token = changes[:2].long()
    repetition, penalty, bias = changes[2:].contiguous().view(torch.float32)
    values = logits[row, token]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[row, token] = values - penalty + bias


def changes_table(
    row: NDArray[np.integer],
    token: NDArray[np.integer],
    repetition: NDArray[np.float32],
    penalty: NDArray[np.float32],
    bias: NDArray[np.float32],
) -> Tensor:
    """The changes of a batch in one tensor, which takes one transfer.

    Args:
        row: [E] of the logits; -1 is no change, to fill up a buffer. A pair of row and token occurs
            once.
        token: [E].
        repetition: [E], more than 0; 1 changes nothing.
        penalty: [E].
        bias: [E]; -inf bans the token.

    Returns:
        int32 [5, E] on the CPU: rows, tokens, and the bits of three float32.
    """
    table = np.empty((5, len(row)), dtype=np.int32)
    table[0], table[1] = row, token
    table[2:] = np.stack([repetition, penalty, bias]).astype(np.float32).view(np.int32)
    return torch.from_numpy(table)
