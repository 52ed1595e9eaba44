"""Rank 0 fills and empties the banks of all processes, together or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.banks.sharded import ShardedBanks
from turret_adapters.components import Component, LowRank, SparseDelta
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.spec import ModelShape, Module, Site

CPU = torch.device("cpu")
WHOLE = ModelShape(1, {Module.Q: (8, 16), Module.O: (16, 8)})
HALF = ModelShape(1, {Module.Q: (8, 8), Module.O: (8, 8)})
Q0, O0 = Site(0, Module.Q), Site(0, Module.O)


def device_banks(max_bytes: int) -> DeviceBanks:
    return DeviceBanks(HALF, 2, 8, CPU, torch.float32, lambda site: None, max_bytes)


def touched(banks: DeviceBanks) -> list[int]:
    """Slots in which something is stored."""
    return [slot for slot in range(2) if any(bank.touched[slot] for bank in banks.acting)]


class OnePeer:
    """Rank 1, in this process."""

    world = 2

    def __init__(self, max_bytes: int) -> None:
        self.banks = device_banks(max_bytes)
        self.error: RuntimeError | None = None
        self._fits = False

    def put(self, slot: int, shards: Sequence[Sequence[Component]]) -> None:
        (shard,) = shards
        self._fits = self.banks.put(slot, shard)

    def finish_put(self) -> bool:
        if self.error is not None:
            raise self.error
        return self._fits

    def clear(self, slot: int) -> None:
        self.banks.clear(slot)


def ranks(max_bytes: int = 1 << 20) -> tuple[ShardedBanks, OnePeer]:
    peer = OnePeer(max_bytes)
    banks = ShardedBanks(
        HALF, 2, 8, CPU, torch.float32, lambda site: None, max_bytes, whole=WHOLE, peers=peer
    )
    return banks, peer


def low_rank(rank: int = 2) -> LowRank:
    return LowRank(Q0, torch.randn(rank, 8), torch.randn(rank, 16))


def lopsided() -> SparseDelta:
    """All of it reads what rank 1 has."""
    outputs, inputs = torch.arange(8).repeat(8), torch.arange(8, 16).repeat_interleave(8)
    return SparseDelta.from_entries(O0, outputs, inputs, torch.ones(64), 8)


def test_every_process_gets_its_shard():
    banks, peer = ranks()
    assert banks.put(1, [low_rank()])
    assert touched(banks) == touched(peer.banks) == [1]
    banks.clear(1)
    assert touched(banks) == touched(peer.banks) == []


def test_the_demand_is_that_of_the_fullest_process():
    banks, _ = ranks()
    demand = banks.demand([lopsided()])
    assert {O0: 9 * 8 + 64 * 8} in demand  # where rows begin; columns and values
    with pytest.raises(AdapterUnsupported):
        ranks(max_bytes=500)[0].check_fits([demand])


def test_where_one_process_lacks_room_none_stores():
    banks, peer = ranks(max_bytes=500)
    assert not banks.put(0, [low_rank(), lopsided()])
    assert touched(banks) == touched(peer.banks) == []
    assert banks.put(1, [low_rank(8)])  # no rank row was lost


def test_where_one_process_fails_none_stores():
    banks, peer = ranks()
    peer.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        banks.put(0, [low_rank()])
    peer.error = None
    assert touched(banks) == touched(peer.banks) == []
    assert banks.put(1, [low_rank(8)])


def test_where_rank_0_fails_none_stores(monkeypatch):
    banks, peer = ranks()

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(banks.low_rank, "put", fail)
    with pytest.raises(MemoryError):
        banks.put(0, [low_rank()])
    assert touched(peer.banks) == []
