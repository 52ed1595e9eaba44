"""The fused q, k, v of Llama-3-8B (its k) and its MLP, the down of Qwen2.5-7B, float32 logits."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.elementwise import OffsetTable, ScaleTable
from turret_kernels.entries import Entries
from turret_kernels.gpu.elementwise import add_offset, scale

SLOTS = 64


def _entries() -> Entries:
    host = [torch.tensor([x], dtype=torch.int32) for x in (0, 8)]
    return Entries(meta(1, dtype=torch.int32), meta(1, dtype=torch.float32), *host)


def _present(dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return meta(SLOTS, dtype=dtype)


def _offset(width: int, n: int, column: int = 0, dtype: torch.dtype = torch.bfloat16) -> None:
    table, entries = OffsetTable(meta(SLOTS, n, dtype=torch.float32), _present()), _entries()
    add_offset(meta(8, width, dtype=dtype), table, entries, column, entries.weight)


def _scale(width: int, n: int, column: int = 0) -> None:
    vectors, entries = meta(SLOTS, n, dtype=torch.float32), _entries()
    table = ScaleTable(vectors, vectors, _present(torch.int32), _present())
    scale(meta(8, width), table, entries, column, entries.weight)


# Narrow: four numbers of the tile, and slot, presence and weight of an entry; scales read slot,
# presence and distance once more. Their last twelve are the code for pairs whose distance 8 does
# not divide, one by one.
GATES = [
    Gate("4096", lambda: _offset(4096, 4096), registers=50, narrow=7),
    Gate("1024 at 4096 of 6144", lambda: _offset(6144, 1024, 4096), registers=50, narrow=7),
    Gate(
        "152064 logits", lambda: _offset(152064, 152064, 0, torch.float32), registers=50, narrow=7
    ),
    Gate("3584 scaled", lambda: _scale(3584, 3584), registers=80, narrow=23),
    Gate("14336 scaled", lambda: _scale(14336, 14336), registers=80, narrow=23),
]
