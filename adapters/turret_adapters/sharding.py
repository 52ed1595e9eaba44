"""The part of a compiled adapter that a process needs which holds one shard of the base.

Tensor parallelism as in Megatron-LM (arXiv 1909.08053): every process has some heads and some
neurons. It holds the rows of q, k, v, gate and up that make them, and the columns of o and down
that read them; what o and down put out are partial sums, which the processes add up.

Everything that acts on the output of o or down is linear in it, or is added to it. So every process
lets its part act on its partial sum, offsets on one of them alone, and the sum is what one process
would have computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from turret_adapters.components import (
    Component,
    InputRotation,
    LowRank,
    Offset,
    Prefix,
    RowDelta,
    Scale,
    SoftPrompt,
    SparseDelta,
    TernaryLowRank,
    Threshold,
)
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels.ternary_low_rank import pack_ternary, unpack_ternary

_BY_OUTPUTS = frozenset({Module.Q, Module.K, Module.V, Module.GATE, Module.UP})
_BY_INPUTS = frozenset({Module.O, Module.DOWN})
_ACTIVATIONS = frozenset({Module.HEADS, Module.ACT, Module.INNER})  # of which each has a part


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `world` equal parts of a model; the first process, rank 0, alone has logits."""

    rank: int = 0
    world: int = 1

    def of(self, size: int) -> slice:
        """Its part of so many rows or columns; the last parts are smaller where it must be so."""
        width = -(-size // self.world)
        return slice(min(self.rank * width, size), min((self.rank + 1) * width, size))


def shard_components(
    components: Sequence[Component], shard: Shard, shape: ModelShape
) -> list[Component]:
    """What the components of an adapter are in one shard.

    Args:
        components: of a compiled adapter.
        shard: which part; heads and neurons are divisible by their number.
        shape: of the whole base.

    Returns:
        Components of the base's shard; views of the tensors where that is possible.

    Raises:
        AdapterUnsupported: a component needs more than each process has.
    """
    parts = (_shard(component, shard, shape) for component in components)
    return [part for part in parts if part is not None]


def _shard(component: Component, shard: Shard, shape: ModelShape) -> Component | None:
    site = component.site
    if site.module is Module.HEAD and shard.rank:
        return None  # there are no logits to act on
    fan_in, fan_out = shape.size(site.module)
    inputs, outputs = slice(0, fan_in), slice(0, fan_out)
    if site.module in _BY_INPUTS:
        inputs = shard.of(fan_in)
    elif site.module in _BY_OUTPUTS | _ACTIVATIONS:
        outputs = shard.of(fan_out)
    match component:
        case LowRank():
            _check_low_rank(component)
            return replace(component, a=component.a[:, inputs], b=component.b[:, outputs])
        case TernaryLowRank():
            a = unpack_ternary(component.a, fan_in)[:, inputs]
            b = unpack_ternary(component.b, fan_out)[:, outputs]
            return TernaryLowRank(
                site, pack_ternary(a), pack_ternary(b), component.scale, a.shape[1], b.shape[1]
            )
        case SparseDelta():
            return _cut_sparse(component, inputs, outputs)
        case Offset():
            if site.module in _BY_INPUTS and shard.rank:
                return None  # the sum of all has it once
            return replace(component, vector=component.vector[outputs])
        case Scale():
            return _cut_scale(component, outputs)
        case InputRotation():
            return replace(component, blocks=_cut_blocks(component, inputs))
        case Prefix():
            heads = shard.of(shape.width(Module.K))
            return Prefix(site, component.keys[:, heads], component.values[:, heads])
        case Threshold() | SoftPrompt() | RowDelta():
            return component
    _refuse(site, f"{type(component).__name__} components cannot be cut")


def _check_low_rank(component: LowRank) -> None:
    site = component.site
    if site.module in _ACTIVATIONS:
        _refuse(site, "a branch reads an activation of which every process has a part only")
    if site.module in _BY_INPUTS and component.num_experts:
        _refuse(site, "a mixture's gate reads an input of which every process has a part only")


def _cut_sparse(component: SparseDelta, inputs: slice, outputs: slice) -> SparseDelta:
    first, last = component.rows[[outputs.start, outputs.stop]].tolist()
    rows = component.rows[outputs.start : outputs.stop + 1] - first
    columns, values = component.columns[first:last], component.values[first:last]
    kept = (columns >= inputs.start) & (columns < inputs.stop)
    before = torch.zeros(len(kept) + 1, dtype=rows.dtype)  # kept values before each value
    torch.cumsum(kept, 0, out=before[1:])
    return SparseDelta(component.site, before[rows], columns[kept] - inputs.start, values[kept])


def _cut_scale(component: Scale, outputs: slice) -> Scale:
    vector, turn = component.vector[outputs], component.turn
    if turn is None:
        return replace(component, vector=vector)
    group = 2 * component.distance
    if outputs.start % group or (outputs.stop - outputs.start) % group:
        _refuse(component.site, f"it turns groups of {group} features, which processes share")
    return replace(component, vector=vector, turn=turn[outputs])


def _cut_blocks(component: InputRotation, inputs: slice) -> Tensor:
    blocks, size = component.blocks, component.blocks.shape[1]
    if inputs.start % size or inputs.stop % size:
        _refuse(component.site, f"it rotates blocks of {size} inputs, which processes share")
    if blocks.shape[0] == 1:  # everywhere the same
        return blocks
    return blocks[inputs.start // size : inputs.stop // size]


def _refuse(site: Site, why: str) -> NoReturn:
    raise AdapterUnsupported(
        "the adapter cannot be split over the processes of --tensor-parallel",
        f"at {site}: {why}",
        "Serve it with fewer processes, or without --tensor-parallel.",
    )
