"""Changed tokens of Llama-3-8B: at the embedding and at the head."""

from __future__ import annotations

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, changed, random, split_rows, torch_peers
from torch import Tensor

from turret_kernels.row_delta import ChangedRows, RowTable, embed_row_delta, head_row_delta

# Where, rows, adapters, changed tokens of each, width, vocabulary.
SIZES = [
    *[("embedding", *step, 256, 4096, 128256) for step in ((8, 8), (64, 8), (2048, 1))],
    *[("head", *step, 256, 4096, 128256) for step in ((1, 1), (8, 8), (64, 8))],
]
TINY = [("embedding", 4, 2, 3, 32, 50), ("head", 4, 2, 3, 32, 50)]


def case(where: str, rows: int, adapters: int, count: int, width: int, vocab: int) -> Case:
    """At the embedding every token of the step is a changed one."""
    if where == "embedding":
        parts = {"y in": (rows, width, 2), "y out": (rows, width, 2), "delta": (rows, width, 4)}
    else:
        parts = {
            "x": (rows, width, 2),
            "delta": (adapters, count, width, 4),
            "y in": (rows, count, 4),
            "y out": (rows, count, 4),
        }

    def make(device: str, sets: int) -> dict[str, Calls]:
        slots = sets * adapters
        ids = torch.randperm(vocab, device=device)[:count].sort().values
        delta = random(slots, count, width, device=device, dtype=torch.float32)
        table = RowTable(slots, torch.device(device))
        for slot, of_slot in enumerate(delta):
            table.set(slot, ChangedRows(ids, of_slot))
        steps = [(split_rows(rows, adapters, step, device),) for step in range(sets)]
        deltas = [(part,) for part in delta.split(adapters)]
        each = rows // adapters
        if where == "embedding":
            y = random(rows, width, device=device)
            which = torch.randint(0, count, (rows,), device=device)
            tokens, owner = ids[which], torch.arange(rows, device=device) // each
            ours = changed(y, lambda entries: embed_row_delta(y, tokens, table, entries))
            theirs = torch_peers(lambda of_step: y.add_(of_step[owner, which]), deltas)
        else:
            x = random(rows, width, device=device)
            y = random(rows, vocab, device=device, dtype=torch.float32)
            ours = changed(y, lambda entries: head_row_delta(y, x, table, entries))

            def run(of_step: Tensor) -> Tensor:
                change = x.view(adapters, each, width).float() @ of_step.mT
                return y.index_add_(1, ids, change.view(rows, count))

            theirs = torch_peers(run, deltas)
        return {"turret": bind(ours, steps), **theirs}

    flop = 2 * rows * count * width if where == "head" else 0
    name = f"{where}, {rows} rows, {adapters} adapters, {count} tokens"
    return Case(name, parts, make, share=0.6, flop=flop)
