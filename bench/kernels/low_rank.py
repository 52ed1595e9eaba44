"""Low-rank branches at the sites of Llama-3-8B, beside gathered `torch.bmm` and vLLM's kernels.

Rows of a decode are shared evenly among the adapters of a step, which changes from call to call. y
and x are the same in all calls, and so in L2, as behind the product that wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from bench.kernels.case import Case
from torch import Tensor

from turret_kernels.entries import Entries
from turret_kernels.low_rank import RankPool, RankSlices, low_rank

SITES = {
    "qkv": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate_up": (4096, (14336, 14336)),
    "down": (14336, (4096,)),
}
# Rows, adapters among them, rank.
STEPS = [(1, 1, 16), (8, 8, 16), (32, 8, 8), (32, 8, 16), (32, 8, 64), (64, 64, 16), (2048, 1, 16)]
_BYTES = 200 << 20  # of a site's adapters: no L2 holds them


def cases(device: str) -> Iterator[Case]:
    """Every site at every step."""
    for site, (k, widths) in SITES.items():
        for rows, adapters, rank in STEPS:
            name = f"{site}, {rows} rows, {adapters} adapters, rank {rank}"
            yield _case(name, k, widths, rows, adapters, rank, device)


def _case(
    name: str, k: int, widths: Sequence[int], rows: int, adapters: int, rank: int, device: str
) -> Case:
    of_one = 2 * rank * (len(widths) * k + sum(widths))
    slots = -(-_BYTES // of_one // adapters) * adapters
    a = [_random(slots, rank, k, device) for _ in widths]
    b = [_random(slots, rank, n, device) for n in widths]
    x, y = _random(rows, k, device), _random(rows, sum(widths), device)
    steps = [torch.arange(s, s + adapters) for s in range(0, slots, adapters)]
    columns = [sum(widths[:i]) for i in range(len(widths))]
    calls = {
        "turret": _turret(y, x, a, b, columns, steps),
        "torch.bmm": _bmm(y, x, a, b, columns, steps),
        "vllm": _vllm(y, x, a, b, steps),
    }
    # A prefill's x and y come from memory.
    activations = rows * (2 * k + 4 * sum(widths)) if rows > 256 else 0
    return Case(
        name,
        {who: found for who, found in calls.items() if found},
        bytes=adapters * of_one + activations,
        flop=rows * of_one,  # two for each factor, which is two bytes
        launches=2,
        share=0.75,
    )


def _random(*shape_and_device: int | str) -> Tensor:
    *shape, device = shape_and_device
    return (torch.randn(*shape, device=device) / 64).bfloat16()


def _turret(
    y: Tensor,
    x: Tensor,
    a: list[Tensor],
    b: list[Tensor],
    columns: list[int],
    steps: list[Tensor],
) -> list[Callable[[], object]]:
    pools = []
    for a_of_slice, b_of_slice in zip(a, b, strict=True):
        slots, rank = a_of_slice.shape[:2]
        empty = torch.zeros(3, slots, dtype=torch.int32, device=x.device)
        pool = RankPool(a_of_slice.flatten(0, 1), b_of_slice.flatten(0, 1), empty)
        for slot in range(slots):
            pool.assign(slot, slot * rank, rank)
        pools.append(pool)
    slices = RankSlices(pools, columns)

    def call(step: Tensor) -> Callable[[], object]:
        each = len(x) // len(step)
        row = torch.arange(0, len(x), each, dtype=torch.int32)
        weight = torch.ones(len(step), device=x.device)
        entries = Entries(step.int().to(x.device), weight, row, torch.full_like(row, each))
        low_rank(y, x, slices, entries)  # the tables of tiles are made once in a step
        return lambda: low_rank(y, x, slices, entries)

    return [call(step) for step in steps]


def _bmm(
    y: Tensor,
    x: Tensor,
    a: list[Tensor],
    b: list[Tensor],
    columns: list[int],
    steps: list[Tensor],
) -> list[Callable[[], object]]:
    """A batch's factors gathered adapter by adapter, then two products of batches."""

    def run(slots: Tensor) -> None:
        batch = x.view(len(slots), -1, x.shape[1])
        for a_of_slice, b_of_slice, column in zip(a, b, columns, strict=True):
            delta = batch @ a_of_slice[slots].mT @ b_of_slice[slots]
            y[:, column : column + delta.shape[2]] += delta.flatten(0, 1)

    return [partial(run, step.to(x.device)) for step in steps]


def _vllm(
    y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], steps: list[Tensor]
) -> list[Callable[[], object]]:
    """vLLM's shrink and expand, if it is installed; it has as many slots as the step."""
    try:
        from vllm.lora.ops.triton_ops import LoRAKernelMeta, lora_expand, lora_shrink
    except ImportError:
        return []
    tokens, rank = len(x), a[0].shape[1]
    hidden = torch.empty(len(a), tokens, rank, device=x.device)
    b = [of_slice.mT.contiguous() for of_slice in b]

    def call(step: Tensor) -> Callable[[], object]:
        meta = LoRAKernelMeta.make(len(step), tokens, x.device)
        mapping = torch.arange(len(step), dtype=torch.int32).repeat_interleave(tokens // len(step))
        meta.prepare_tensors(mapping.to(x.device))
        try:
            arguments = meta.meta_args(tokens)
        except TypeError:  # newer: whether kernels are specialised on the number of adapters
            arguments = meta.meta_args(tokens, True)
        first, last = int(step[0]), int(step[-1]) + 1
        a_of_step, b_of_step = ([s[first:last] for s in factors] for factors in (a, b))

        def run() -> None:
            lora_shrink(x, a_of_step, hidden, *arguments, 1.0)
            lora_expand(hidden, b_of_step, y, *arguments, offset_start=0, add_inputs=True)

        return run

    return [call(step) for step in steps]
