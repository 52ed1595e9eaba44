"""Low-rank branches at Llama-3-8B's embedding."""

from __future__ import annotations

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, changed, random, split_rows, torch_peers
from torch import Tensor

from turret_kernels.embed_low_rank import embed_low_rank
from turret_kernels.low_rank import RankPool

# Rows, adapters, rank, width, vocabulary.
SIZES = [(*step, 16, 4096, 128256) for step in ((8, 8), (64, 8), (64, 64), (2048, 1))]
TINY = [(4, 2, 16, 32, 50)]
_SECTOR = 32  # bytes: a token's column of A lies across its rows
_BYTES = 16 << 30  # of A


def case(rows: int, adapters: int, rank: int, width: int, vocab: int) -> Case:
    """Ranks of one size."""
    parts = {
        "A": (rows, rank, _SECTOR),
        "B": (adapters, rank, width, 2),
        "y in": (rows, width, 2),
        "y out": (rows, width, 2),
    }

    def make(device: str, sets: int) -> dict[str, Calls]:
        # The vocabulary makes A large: fewer sets.
        sets = max(1, min(sets, _BYTES // (adapters * rank * vocab * 2)))
        slots = sets * adapters
        a = random(slots * rank, vocab, device=device)
        b = random(slots * rank, width, device=device)
        pool = RankPool(a, b, slots=torch.zeros(3, slots, dtype=torch.int32, device=device))
        for slot in range(slots):
            pool.assign(slot, slot * rank, rank)
        tokens = torch.randint(0, vocab, (rows,), device=device)
        y = random(rows, width, device=device)
        steps = [(split_rows(rows, adapters, step, device),) for step in range(sets)]

        def run(a_of_step: Tensor, b_of_step: Tensor) -> Tensor:
            hidden = a_of_step.index_select(1, tokens).view(adapters, rank, adapters, -1)
            own = hidden.diagonal(dim1=0, dim2=2).permute(2, 1, 0)  # [adapters, rows each, rank]
            change = own @ b_of_step.view(adapters, rank, width)
            return y.add_(change.reshape(rows, width))

        of_step = adapters * rank
        factors = list(zip(a.split(of_step), b.split(of_step), strict=True))
        ours = changed(y, lambda entries: embed_low_rank(y, tokens, pool, entries))
        return {"turret": bind(ours, steps), **torch_peers(run, factors)}

    flop = 2 * rows * rank * width
    return Case(f"{rows} rows, {adapters} adapters, rank {rank}", parts, make, share=0.5, flop=flop)
