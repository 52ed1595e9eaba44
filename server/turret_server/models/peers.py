"""The processes that hold the shards of one model, and what they do together in a step."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from turret_adapters.sharding import Shard

# Of one call, the first included, which waits for interpreters to start.
_TIMEOUT = timedelta(minutes=5)


class Peers:
    """The processes of a tensor-parallel model: gloo between CPUs, NCCL between GPUs.

    Every process calls the same methods in the same order; a call waits for the others.

    Args:
        shard: which of them this one is.
        device: where its shard lives.
        rendezvous: a file that all of them name, in a folder that is theirs alone; it stays there
            as long as they do.

    Attributes:
        shard: as given.
    """

    def __init__(self, shard: Shard, device: torch.device, rendezvous: Path) -> None:
        self.shard = shard
        is_gpu = device.type == "cuda"
        # All of them are on this machine, whatever it calls itself in its network.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        if is_gpu:
            torch.cuda.set_device(device)
        distributed.init_process_group(
            "nccl" if is_gpu else "gloo",
            init_method=rendezvous.as_uri(),
            rank=shard.rank,
            world_size=shard.world,
            device_id=device if is_gpu else None,
            timeout=_TIMEOUT,
        )

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every process's `x`, in place, the same bits in all of them."""
        distributed.all_reduce(x)
        return x

    def gather(self, x: Tensor, columns: int) -> Tensor:
        """Every process's columns side by side, on rank 0; the others get their own back.

        Args:
            x: [L, n], n as `Shard.of(columns)` has it.
            columns: of all together.

        Returns:
            [L, columns], contiguous.
        """
        world, width = self.shard.world, -(-columns // self.shard.world)
        padded = F.pad(x, (0, width - x.shape[1]))
        if self.shard.rank:
            distributed.gather(padded)
            return x
        parts = [torch.empty_like(padded) for _ in range(world)]
        distributed.gather(padded, parts)
        return torch.cat(parts, 1)[:, :columns].contiguous()

    def close(self) -> None:
        """Leave them; a process that ends need not."""
        distributed.destroy_process_group()
