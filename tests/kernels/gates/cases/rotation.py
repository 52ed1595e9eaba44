"""What the linears of Llama-3-8B read, and the down of Qwen2.5-7B.

The size of the blocks is no part of what is compiled.
"""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.entries import Entries
from turret_kernels.gpu.rotation import rotate
from turret_kernels.rotation import BlockTable

TABLE = BlockTable(64, torch.device("meta"))


def _launch(rows: int, width: int) -> None:
    row = torch.arange(rows, dtype=torch.int32)
    weight, slot = meta(rows, dtype=torch.float32), meta(rows, dtype=torch.int32)
    entries = Entries(slot, weight, row, torch.ones_like(row))
    rotate(meta(rows, width), TABLE, entries, weight)


# Narrow: a tile, an entry, what the table says of its slot, whether a row is free; and blocks of
# odd sizes, number by number, in the loop that is theirs.
GATES = [
    Gate(
        f"{width}, {step}",
        lambda rows=rows, width=width: _launch(rows, width),
        registers=160,
        shared=shared,
        narrow=20,
        tensor_cores=True,
    )
    for width in (4096, 18944)
    for step, rows, shared in (("decode", 64, 10240), ("prefill", 512, 24608))
]
