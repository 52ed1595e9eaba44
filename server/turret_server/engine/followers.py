"""The other processes of a tensor-parallel engine, seen from rank 0."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from turret_adapters.components import Component
from turret_adapters.plan import RowUse
from turret_adapters.sharding import Shard
from turret_server.engine import shard_messages as m
from turret_server.engine.lifetime import environment_of_child
from turret_server.engine.settings import EngineSettings
from turret_server.errors import StartupError
from turret_server.models.peers import Peers

log = logging.getLogger("turret.followers")

_POLL_S = 0.2


class Followers:
    """Starts the processes of ranks 1, 2, …, and tells them what to do.

    They end with this process. One thread tells them of steps, another of adapters: for that one
    this is a `turret_adapters.banks.sharded.Peers`.

    Args:
        settings: of the engine.
        device: of rank 0.
        folder: where a file may lie at which they meet; None for the system's.

    Attributes:
        world: how many processes there are, this one included.
        peers: what they do together inside a step.
    """

    def __init__(
        self, settings: EngineSettings, device: torch.device, folder: Path | None = None
    ) -> None:
        self.world = settings.tensor_parallel
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(m.Answer).decode
        self._lock = threading.Lock()  # held while a command is sent
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        # Of mode 0700. Others may still read the file when this process has met them.
        self._folder = tempfile.TemporaryDirectory(prefix="turret-", dir=folder)
        rendezvous = Path(self._folder.name) / "rendezvous"
        for rank in range(1, self.world):
            self._start(m.Start(settings, rank, str(rendezvous)))
        self.peers = Peers(Shard(0, self.world), device, rendezvous)

    def loaded(self) -> int:
        """Wait until all hold their weights; the bytes that each has for its cache.

        Raises:
            StartupError: one of them ended.
        """
        found = []
        for pipe in self._pipes:
            try:
                answer = self._decode(pipe.recv_bytes())
            except (EOFError, OSError) as error:
                raise StartupError(
                    "a process of --tensor-parallel ended before it could serve",
                    "it has not loaded its shard of the model",
                    "See its own messages above.",
                ) from error
            assert isinstance(answer, m.Loaded)
            found.append(answer.kv_bytes)
        return min(found)

    def begin(self, num_blocks: int) -> None:
        """Let them allocate their caches."""
        self._tell(m.Begin(num_blocks))

    def step(
        self, arrays: dict[str, np.ndarray], logit_rows: Tensor | None, uses: Sequence[RowUse]
    ) -> None:
        """Let them run the decoder, as this process is about to.

        Args:
            arrays: of the batch, see `BatchBuilder.arrays`.
            logit_rows: of the batch.
            uses: what acts on which rows.
        """
        self._tell(m.Step.of(arrays, logit_rows, uses))

    def put(self, slot: int, shards: Sequence[Sequence[Component]]) -> None:
        """See `turret_adapters.banks.sharded.Peers.put`."""
        for pipe, shard in zip(self._pipes, shards, strict=True):
            packed, frames = m.pack(shard)
            with self._lock:
                pipe.send_bytes(self._encode(m.Put(slot, packed)))
                for frame in frames:
                    pipe.send_bytes(frame)

    def finish_put(self) -> bool:
        """See `turret_adapters.banks.sharded.Peers.finish_put`."""
        answers = [self._decode(pipe.recv_bytes()) for pipe in self._pipes]
        stored = [answer for answer in answers if isinstance(answer, m.Stored)]
        for rank, answer in enumerate(stored, 1):
            if answer.error:
                raise RuntimeError(f"in the process of rank {rank}: {answer.error}")
        return all(answer.fits for answer in stored)

    def clear(self, slot: int) -> None:
        """See `turret_adapters.banks.sharded.Peers.clear`."""
        self._tell(m.Clear(slot))

    def end_with_them(self) -> None:
        """Wait until one has ended, then end this process: the supervisor starts all anew."""
        while all(process.poll() is None for process in self._processes):
            time.sleep(_POLL_S)
        log.error("a process of --tensor-parallel ended")
        os._exit(1)

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.wait()
        for pipe in self._pipes:
            pipe.close()
        self.peers.close()
        self._folder.cleanup()

    def _start(self, start: m.Start) -> None:
        pipe, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "turret_server.engine.follower", str(descriptor)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(descriptor,),
                    env=environment_of_child(),
                )
            )
        self._pipes.append(pipe)
        pipe.send_bytes(msgspec.msgpack.encode(start))

    def _tell(self, command: m.Command) -> None:
        """Tell all of them."""
        message = self._encode(command)
        with self._lock:
            for pipe in self._pipes:
                pipe.send_bytes(message)
