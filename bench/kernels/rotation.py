"""OFT's rotated inputs of Llama-3-8B: of a hidden state, and of down."""

from __future__ import annotations

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, random, split_rows, torch_peers
from torch import Tensor

from turret_kernels.rotation import BlockTable, rotate

# Rows, adapters, width, size of the blocks (32 is PEFT's default).
SIZES = [
    *[(*step, 4096, 32) for step in ((1, 1), (8, 8), (64, 8), (64, 64), (2048, 1))],
    *[(*step, 14336, 32) for step in ((8, 8), (2048, 1))],
    (8, 8, 4096, 128),
]
TINY = [(4, 2, 32, 8), (2, 1, 30, 5)]


def case(rows: int, adapters: int, width: int, size: int) -> Case:
    """A linear's input."""
    parts = {
        "x": (rows, width, 2),
        "out": (rows, width, 2),
        "blocks": (adapters, width, size, 4),
    }

    def make(device: str, sets: int) -> dict[str, Calls]:
        shape = sets * adapters, width // size, size, size
        blocks = random(*shape, device=device, dtype=torch.float32)
        table = BlockTable(sets * adapters, torch.device(device))
        for slot, of_slot in enumerate(blocks):
            table.set(slot, of_slot)
        x = random(rows, width, device=device)
        steps = [(split_rows(rows, adapters, step, device),) for step in range(sets)]

        def run(slots: Tensor) -> Tensor:
            """Batches of an adapter's rows by its blocks."""
            grouped = x.view(len(slots), -1, width // size, size).transpose(1, 2).float()
            change = (grouped @ blocks[slots]).transpose(1, 2).reshape(rows, width)
            return (x + change).to(x.dtype)

        slots = [(entries.slot.long(),) for (entries,) in steps]
        ours = bind(lambda entries: rotate(x, table, entries), steps)
        return {"turret": ours, **torch_peers(run, slots)}

    name = f"{rows}x{width}, {adapters} adapters, blocks of {size}"
    # Two products of bfloat16 for one of float32.
    return Case(name, parts, make, share=0.6, flop=4 * rows * width * size)
