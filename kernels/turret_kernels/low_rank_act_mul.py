"""`act(gate) * up` of an adapted gate and up: their low-rank branches are added on the way."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from turret_kernels import gpu
from turret_kernels.activation import Activation, act_mul
from turret_kernels.entries import Entries
from turret_kernels.low_rank import RankSlices, low_rank


def low_rank_act_mul(
    gate_up: Tensor,
    x: Tensor,
    slices: RankSlices,
    entries: Entries,
    activation: Activation,
    weights: Sequence[Tensor] | None = None,
) -> Tensor:
    """`low_rank` and then `act_mul`, rounded where those round; a GPU does the last part at once.

    Args:
        gate_up: [T, 2 I] output of the base linears, contiguous; afterwards of no use.
        x: [T, in_features] their input, contiguous.
        slices: the pool of gate, of up, or of both.
        entries: what acts where.
        activation: of the gate.
        weights: float32 [E] per slice, where they differ from `entries.weight`.

    Returns:
        [T, I], contiguous.
    """
    if gpu.takes(x):
        from turret_kernels.gpu import low_rank_act_mul as kernels

        of_slices = weights or [entries.weight] * len(slices.pools)
        return kernels.low_rank_act_mul(gate_up, x, slices, entries, of_slices, activation)
    low_rank(gate_up, x, slices, entries, weights)
    return act_mul(gate_up, activation)
