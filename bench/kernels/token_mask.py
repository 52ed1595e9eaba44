"""A grammar's mask over Llama-3's vocabulary."""

from __future__ import annotations

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, random, torch_peers
from torch import Tensor

from turret_kernels.token_mask import apply_token_mask

SIZES = [(rows, 128256) for rows in (1, 8, 64)]
TINY = [(2, 64)]


def case(rows: int, vocab: int) -> Case:
    """Every row has a mask."""
    parts = {
        "logits in": (rows, vocab, 4),
        "logits out": (rows, vocab, 4),
        "mask": (rows, vocab // 32, 4),
    }

    def make(device: str, sets: int) -> dict[str, Calls]:
        inputs = [(random(rows, vocab, device=device, dtype=torch.float32),) for _ in range(sets)]
        mask = torch.randint(-(1 << 31), 1 << 31, (rows, vocab // 32), device=device).int()
        which = torch.arange(rows, dtype=torch.int32, device=device)
        bit = torch.arange(32, dtype=torch.int32, device=device)

        def ours(logits: Tensor) -> Tensor:
            apply_token_mask(logits, which, mask)
            return logits

        def run(logits: Tensor) -> Tensor:
            banned = (mask[:, :, None] >> bit & 1 == 0).flatten(1)
            return logits.masked_fill_(banned, float("-inf"))

        return {"turret": bind(ours, inputs), **torch_peers(run, inputs)}

    return Case(f"{rows}x{vocab}", parts, make)
