"""Penalties on the tokens that the rows of a batch have had."""

from __future__ import annotations

import numpy as np
import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, random, torch_peers
from torch import Tensor

from turret_kernels.penalties import apply_penalties, changes_table

SIZES = [(rows, 128256, 500) for rows in (1, 8, 64)]  # rows, vocabulary, changes of each
TINY = [(2, 50, 5)]
_SECTOR = 32  # bytes: a changed logit is alone in its own


def case(rows: int, vocab: int, each: int) -> Case:
    """All kinds of penalties at once."""
    changes = rows * each
    parts = {
        "changes": (5, changes, 4),
        "logits in": (changes, _SECTOR),
        "logits out": (changes, _SECTOR),
    }

    def make(device: str, sets: int) -> dict[str, Calls]:
        owner = np.arange(rows).repeat(each)
        token = np.concatenate(
            [np.random.default_rng(i).permutation(vocab)[:each] for i in range(rows)]
        )
        ones = np.ones(changes, dtype=np.float32)
        table = changes_table(owner, token, 1.5 * ones, 0 * ones, 0 * ones).to(device)
        inputs = [
            (random(rows, vocab, device=device, dtype=torch.float32),)
            for _ in range(min(sets, max(1, (1 << 30) // (4 * rows * vocab))))
        ]
        row, column = table[:2].long()
        repetition, penalty, bias = table[2:].contiguous().view(torch.float32)

        def ours(logits: Tensor) -> Tensor:
            apply_penalties(logits, table)
            return logits

        def run(logits: Tensor) -> Tensor:
            values = logits[row, column]
            values = torch.where(values > 0, values / repetition, values * repetition)
            return logits.index_put_((row, column), values - penalty + bias)

        return {"turret": bind(ours, inputs), **torch_peers(run, inputs)}

    return Case(f"{rows}x{vocab}, {each} each", parts, make, share=0.5)
