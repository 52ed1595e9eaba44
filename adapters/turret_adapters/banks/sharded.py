"""The banks of a process that is one of several, each with a shard of the base and its adapters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Protocol

import torch
from torch import Tensor

from turret_adapters.banks.device import Demand, DeviceBanks
from turret_adapters.components import Component
from turret_adapters.sharding import Shard, shard_components
from turret_adapters.spec import ModelShape, Site


class Peers(Protocol):
    """The banks of the other processes. One thread calls; what it asks for happens in order."""

    @property
    def world(self) -> int:
        """How many processes there are, this one included."""
        ...

    def put(self, slot: int, shards: Sequence[Sequence[Component]]) -> None:
        """Begin to store an adapter in an empty slot, a shard for each of ranks 1, 2, …"""

    def finish_put(self) -> bool:
        """Wait until all have done so: true where each had room.

        Raises:
            RuntimeError: what went wrong at one of them, when all have answered.
        """
        ...

    def clear(self, slot: int) -> None:
        """Free a slot, before anything that is asked for later."""


class ShardedBanks(DeviceBanks):
    """The banks of rank 0, which fill and empty those of all ranks.

    Args:
        shape: this process's shard of the base.
        num_slots, max_rank_rows, device, dtype, base_bias, max_delta_bytes, max_neuron_bytes,
            max_ternary_rows: see `DeviceBanks`.
        whole: the base.
        peers: the other processes.
    """

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        max_rank_rows: int,
        device: torch.device,
        dtype: torch.dtype,
        base_bias: Callable[[Site], Tensor | None],
        max_delta_bytes: int,
        max_neuron_bytes: int = 1 << 30,
        max_ternary_rows: int = 0,
        *,
        whole: ModelShape,
        peers: Peers,
    ):
        super().__init__(
            shape,
            num_slots,
            max_rank_rows,
            device,
            dtype,
            base_bias,
            max_delta_bytes,
            max_neuron_bytes,
            max_ternary_rows,
        )
        self._whole, self._peers = whole, peers

    def demand(self, components: Sequence[Component]) -> Demand:
        """What an adapter takes of every bank, in the process where it takes most.

        Raises:
            AdapterUnsupported: no bank holds one of the components, or it cannot be split.
        """
        demands = [DeviceBanks.demand(self, shard) for shard in self._shards(components)]
        return tuple(_largest(of_bank) for of_bank in zip(*demands, strict=True))

    def put(self, slot: int, components: Sequence[Component]) -> bool:
        """See `DeviceBanks.put`: stored by every process, or by none."""
        own, *others = self._shards(components)
        fits = False
        self._peers.put(slot, others)
        try:
            try:
                fits_here = super().put(slot, own)
            finally:
                fits_there = self._peers.finish_put()
            fits = fits_here and fits_there
        finally:
            if not fits:
                self.clear(slot)
        return fits

    def clear(self, slot: int) -> None:
        """Free a slot in every process. No running step may use it."""
        self._peers.clear(slot)
        super().clear(slot)

    def _shards(self, components: Sequence[Component]) -> list[list[Component]]:
        world = self._peers.world
        ranks = [Shard(rank, world) for rank in range(world)]
        return [shard_components(components, shard, self._whole) for shard in ranks]


def _largest(demands: Sequence[Mapping[Site, int]]) -> Mapping[Site, int]:
    return reduce(or_, (Counter(demand) for demand in demands))
