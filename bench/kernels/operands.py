"""Operands that several ops have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from bench.kernels.case import Calls
from torch import Tensor

from turret_kernels.entries import Entries


def random(*shape: int, device: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Small numbers, so that nothing overflows that is updated again and again."""
    return (torch.randn(*shape, device=device) / 64).to(dtype)


def split_rows(rows: int, adapters: int, step: int, device: str) -> Entries:
    """The entries of a step: its rows evenly among adapters of its own."""
    count = torch.full((adapters,), rows // adapters, dtype=torch.int32)
    slot = torch.arange(step * adapters, (step + 1) * adapters, dtype=torch.int32, device=device)
    weight = torch.ones(adapters, device=device)
    return Entries(slot, weight, count.cumsum(0).int() - count, count)


def slots_of_rows(entries: Entries) -> Tensor:
    """int64 [T]: the slot of every row of such a step."""
    return entries.slot.long().repeat_interleave(int(entries.row_count[0]))


def torch_peers(run: Callable[..., object], sets: Sequence[tuple[Any, ...]]) -> dict[str, Calls]:
    """A torch expression on all sets of arguments, as it is and, on a GPU, compiled."""
    calls = {"torch": bind(run, sets)}
    if torch.cuda.is_available():
        calls["torch.compile"] = bind(torch.compile(run, dynamic=False), sets)
    return calls


def changed(y: Tensor, run: Callable[..., object]) -> Callable[..., Tensor]:
    """`run`, which changes y in place, with y as its result: tests look at it."""

    def call(*arguments: object) -> Tensor:
        run(*arguments)
        return y

    return call


def bind(run: Callable[..., object], sets: Sequence[tuple[Any, ...]]) -> Calls:
    """A call for every set of arguments."""
    return [lambda arguments=arguments: run(*arguments) for arguments in sets]
