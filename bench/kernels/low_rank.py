"""Low-rank branches at the sites of Llama-3-8B, beside gathered `torch.bmm` and other servers'.

Rows of a decode are shared evenly among the adapters of a step, which changes from call to call. y
and x are the same in all calls, and so in L2, as behind the product that wrote them.
"""

from __future__ import annotations

from functools import partial

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, changed, random, split_rows
from bench.kernels.peers import peer_calls
from torch import Tensor

from turret_kernels.low_rank import RankPool, RankSlices, low_rank, write_rank_rows

# Rows, adapters among them, rank; at the sites of Llama-3-8B.
_STEPS = [(1, 1, 16), (8, 8, 16), (32, 8, 8), (32, 8, 16), (32, 8, 64), (64, 64, 16), (2048, 1, 16)]
_SITES = [
    ("qkv", 4096, (4096, 1024, 1024)),
    ("o", 4096, (4096,)),
    ("gate_up", 4096, (14336, 14336)),
    ("down", 14336, (4096,)),
]
SIZES = [(*site, *step) for site in _SITES for step in _STEPS]
TINY = [("qkv", 64, (32, 16, 16), 4, 2, 16)]


def case(site: str, k: int, widths: tuple[int, ...], rows: int, adapters: int, rank: int) -> Case:
    """Adapters of one rank."""
    parts = {"A": (adapters, len(widths), rank, k, 2), "B": (adapters, rank, sum(widths), 2)}
    if rows > 256:  # a prefill's x and y come from memory
        parts |= {"x": (rows, k, 2), "y in, out": (rows, sum(widths), 4)}

    def make(device: str, sets: int) -> dict[str, Calls]:
        slots = sets * adapters
        a = [random(slots, rank, k, device=device) for _ in widths]
        b = [random(slots, rank, n, device=device) for n in widths]
        x, y = random(rows, k, device=device), random(rows, sum(widths), device=device)
        steps = [torch.arange(s, s + adapters) for s in range(0, slots, adapters)]
        columns = [sum(widths[:i]) for i in range(len(widths))]
        return {
            "turret": turret_calls(y, x, a, b, columns, adapters, sets),
            "torch.bmm": bmm_calls(y, x, a, b, columns, steps),
            **peer_calls(y, x, a, b, adapters),
        }

    return Case(
        f"{site}, {rows} rows, {adapters} adapters, rank {rank}",
        parts,
        make,
        launches=2,
        share=0.75,
        flop=2 * rows * rank * (len(widths) * k + sum(widths)),
    )


def turret_calls(
    y: Tensor,
    x: Tensor,
    a: list[Tensor],
    b: list[Tensor],
    columns: list[int],
    adapters: int,
    sets: int,
) -> Calls:
    """Through `low_rank`; a step has slots of its own."""
    slices = fill_slices(a, b, columns)
    steps = [(split_rows(len(x), adapters, step, x.device.type),) for step in range(sets)]
    return bind(changed(y, lambda entries: low_rank(y, x, slices, entries)), steps)


def fill_slices(a: list[Tensor], b: list[Tensor], columns: list[int]) -> RankSlices:
    """A pool per slice, with the factors [slots, rank, width] of its adapters in it."""
    pools = []
    for a_of_slice, b_of_slice in zip(a, b, strict=True):
        slots, rank = a_of_slice.shape[:2]
        empty = torch.zeros(3, slots, dtype=torch.int32, device=a_of_slice.device)
        rows = torch.empty_like(a_of_slice), torch.empty_like(b_of_slice)
        pool = RankPool(*(part.flatten(0, 1) for part in rows), slots=empty)
        for slot in range(slots):
            write_rank_rows(pool, slot * rank, a_of_slice[slot], b_of_slice[slot])
            pool.assign(slot, slot * rank, rank)
        pools.append(pool)
    return RankSlices(pools, columns)


def bmm_calls(
    y: Tensor,
    x: Tensor,
    a: list[Tensor],
    b: list[Tensor],
    columns: list[int],
    steps: list[Tensor],
) -> Calls:
    """A batch's factors gathered adapter by adapter, then two products of batches."""

    def run(slots: Tensor) -> Tensor:
        batch = x.view(len(slots), -1, x.shape[1])
        for a_of_slice, b_of_slice, column in zip(a, b, columns, strict=True):
            delta = batch @ a_of_slice[slots].mT @ b_of_slice[slots]
            y[:, column : column + delta.shape[2]] += delta.flatten(0, 1)
        return y

    return [partial(run, step.to(x.device)) for step in steps]
