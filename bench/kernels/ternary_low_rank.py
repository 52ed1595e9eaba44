"""Low-rank branches of two bits a value, at the sites and in the steps of `low_rank`.

Beside them the same adapters in bfloat16, through `low_rank`: what the two bits are worth.
"""

from __future__ import annotations

import math

import torch
from bench.kernels import low_rank as dense
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, changed, random, split_rows
from torch import Tensor

from turret_kernels.ternary_low_rank import (
    TernaryPool,
    TernarySlices,
    num_words,
    pack_ternary,
    ternary_low_rank,
    write_ternary_rows,
)

SIZES = dense.SIZES
TINY = dense.TINY
# Unpacking a value takes some 2.5 instructions of the code that triton 3.9 writes for sm_90. An SM
# has 64 lanes for them, and makes 4096 flop by clock meanwhile: so many flop's time.
_UNPACKING = 160


def case(site: str, k: int, widths: tuple[int, ...], rows: int, adapters: int, rank: int) -> Case:
    """Adapters of one rank."""
    parts = {"A": (adapters, len(widths), rank, k // 4), "B": (adapters, rank, sum(widths) // 4)}
    if rows > 256:  # a prefill's x and y come from memory
        parts |= {"x": (rows, k, 2), "y in, out": (rows, sum(widths), 4)}

    def make(device: str, sets: int) -> dict[str, Calls]:
        slots = sets * adapters
        a = [torch.randint(-1, 2, (slots, rank, k), device=device) for _ in widths]
        b = [torch.randint(-1, 2, (slots, rank, n), device=device) for n in widths]
        x, y = random(rows, k, device=device), random(rows, sum(widths), device=device)
        steps = [torch.arange(s, s + adapters) for s in range(0, slots, adapters)]
        columns = [sum(widths[:i]) for i in range(len(widths))]
        # A power of two, which bfloat16 does not round.
        whole = [[(part / 64).bfloat16() for part in factors] for factors in (a, b)]
        return {
            "turret": _turret(y, x, a, b, columns, adapters, sets),
            "bfloat16": dense.turret_calls(y, x, *whole, columns, adapters, sets),
            "torch.bmm": dense.bmm_calls(y, x, *whole, columns, steps),
        }

    values = adapters * rank * (len(widths) * k + sum(widths))
    tiles = math.ceil(rows / adapters / (16 if rows <= 256 else 64))  # each unpacks for itself
    products = 2 * rows * rank * (len(widths) * k + sum(widths))
    return Case(
        f"{site}, {rows} rows, {adapters} adapters, rank {rank}",
        parts,
        make,
        launches=2,
        share=0.75,
        flop=products + _UNPACKING * values * tiles,
    )


def _turret(
    y: Tensor,
    x: Tensor,
    a: list[Tensor],
    b: list[Tensor],
    columns: list[int],
    adapters: int,
    sets: int,
) -> Calls:
    pools = []
    for a_of_slice, b_of_slice in zip(a, b, strict=True):
        slots, rank, k = a_of_slice.shape
        n, device = b_of_slice.shape[2], x.device
        words = [num_words(k), num_words(n)]
        packed = (torch.empty(slots * rank, w, dtype=torch.int16, device=device) for w in words)
        pool = TernaryPool(
            *packed,
            scale=torch.empty(slots * rank, device=device),
            in_features=k,
            out_features=n,
            slots=torch.zeros(3, slots, dtype=torch.int32, device=device),
        )
        scale = torch.full((rank,), 1 / 4096, device=device)
        for slot in range(slots):
            factors = pack_ternary(a_of_slice[slot]), pack_ternary(b_of_slice[slot])
            write_ternary_rows(pool, slot * rank, *factors, scale)
            pool.assign(slot, slot * rank, rank)
        pools.append(pool)
    slices = TernarySlices(pools, columns)
    steps = [(split_rows(len(x), adapters, step, x.device.type),) for step in range(sets)]
    return bind(changed(y, lambda entries: ternary_low_rank(y, x, slices, entries)), steps)
