"""Offsets and scales by slot: at Llama-3-8B's o, and behind its MLP's product."""

from __future__ import annotations

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, changed, random, slots_of_rows, split_rows, torch_peers

from turret_kernels.elementwise import OffsetTable, ScaleTable, add_offset, scale

# What, rows, adapters, width.
SIZES = [
    (what, rows, adapters, width)
    for what, width in (("offset", 4096), ("scale", 14336), ("turn", 4096))
    for rows, adapters in ((8, 8), (64, 8), (64, 64), (2048, 1))
]
TINY = [("offset", 4, 2, 48), ("scale", 4, 2, 48), ("turn", 4, 2, 48)]


def case(what: str, rows: int, adapters: int, width: int) -> Case:
    """`turn`: every feature gets some of its partner, which is the neighbour 8 features on."""
    tables = 2 if what == "turn" else 1
    parts = {
        "y in": (rows, width, 2),
        "y out": (rows, width, 2),
        "vectors": (tables, adapters, width, 4),
    }

    def make(device: str, sets: int) -> dict[str, Calls]:
        slots = sets * adapters
        y = random(rows, width, device=device)
        first, second = random(2, slots, width, device=device, dtype=torch.float32)
        present = torch.ones(slots, dtype=torch.uint8, device=device)
        steps = [(split_rows(rows, adapters, step, device),) for step in range(sets)]
        rows_of = [(slots_of_rows(entries),) for (entries,) in steps]
        if what == "offset":
            offsets = OffsetTable(first, present)
            ours = bind(changed(y, lambda entries: add_offset(y, offsets, entries)), steps)
            theirs = torch_peers(lambda slot: y.add_(first[slot]), rows_of)
        else:
            distance = torch.full((slots,), 8 if tables == 2 else 0, dtype=torch.int32).to(device)
            scales = ScaleTable(first, second, distance, present)
            ours = bind(changed(y, lambda entries: scale(y, scales, entries)), steps)

            def run(slot: torch.Tensor) -> torch.Tensor:
                change = first[slot] * y
                if tables == 2:
                    change += second[slot] * y.view(rows, -1, 2, 8).flip(2).flatten(1)
                return y.add_(change)

            theirs = torch_peers(run, rows_of)
        return {"turret": ours, **theirs}

    return Case(f"{what}, {rows}x{width}, {adapters} adapters", parts, make)
