"""A process of a tensor-parallel engine other than rank 0: `python -m ….follower DESCRIPTOR`.

It holds a shard of the base, of its cache and of the adapters, and does what rank 0 tells it over
a pipe, one command after another. Whatever goes wrong ends it, and with it the engine.
"""

from __future__ import annotations

import gc
import logging
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.plan import BASE, StepPlan
from turret_adapters.sharding import Shard
from turret_kernels import gpu
from turret_kernels.paged_attention import AttentionMetadata
from turret_server.engine import shard_messages as m
from turret_server.engine.device import (
    kv_cache_bytes,
    rank_device,
    resolve_dtype,
    resolve_quantization,
    use_threads,
)
from turret_server.engine.lifetime import die_with_parent
from turret_server.engine.runner import Runner
from turret_server.engine.stores import store_limits
from turret_server.models.batch import Batch
from turret_server.models.config import DecoderConfig
from turret_server.models.decoder import Decoder
from turret_server.models.peers import Peers

log = logging.getLogger("turret.follower")


def main() -> None:
    """Serve until rank 0 goes away."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    die_with_parent()
    pipe = Connection(int(sys.argv[1]))
    try:
        Follower(pipe, msgspec.msgpack.decode(pipe.recv_bytes(), type=m.Start)).run()
    except EOFError:
        sys.exit("rank 0 is gone")


class Follower:
    """One shard, and the loop that obeys rank 0.

    Args:
        pipe: to rank 0.
        start: what it is told at its start.
    """

    def __init__(self, pipe: Connection, start: m.Start) -> None:
        self._pipe, settings = pipe, start.settings
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(m.Command).decode
        self._settings = settings
        use_threads(settings)
        self._device = device = rank_device(settings.device, start.rank)
        peers = Peers(Shard(start.rank, settings.tensor_parallel), device, Path(start.rendezvous))
        folder, dtype = Path(settings.model), resolve_dtype(settings.dtype, device)
        max_len = settings.max_model_len or DecoderConfig.from_folder(folder).max_context
        quantization = resolve_quantization(settings.quantization, device, dtype)
        self._decoder = Decoder.load(
            folder, dtype, device, max_len, peers=peers, quantization=quantization
        )
        bounds = store_limits(settings, device)
        pools = bounds.pool_bytes(self._decoder.shape, dtype)
        self._cache_bytes = kv_cache_bytes(settings.kv_cache_bytes, device, pools)
        self._banks = DeviceBanks(
            self._decoder.shape,
            bounds.max_resident,
            bounds.max_rank_rows,
            device,
            dtype,
            self._decoder.bias,
            bounds.max_delta_bytes,
            bounds.max_neuron_bytes,
            bounds.max_ternary_rows,
        )

    def run(self) -> None:
        """Obey until rank 0 goes away.

        Raises:
            EOFError: it has gone.
        """
        settings = self._settings
        self._answer(m.Loaded(self._cache_bytes))
        begin = self._decode(self._pipe.recv_bytes())
        assert isinstance(begin, m.Begin)
        kv = self._decoder.allocate_kv(begin.num_blocks, settings.kv_block_tokens)
        runner = Runner(self._decoder, kv, settings.max_running)
        self._tables = self._make_tables(begin.num_blocks)
        gc.collect()
        gc.freeze()
        while True:
            match command := self._decode(self._pipe.recv_bytes()):
                case m.Step():
                    with torch.inference_mode():
                        runner.forward(self._batch(command))
                case m.Put():
                    self._answer(self._put(command))
                case m.Clear():
                    self._banks.clear(command.slot)
                case m.Begin():
                    raise ValueError("the cache is there already")

    def _batch(self, step: m.Step) -> Batch:
        sequences = len(step.context_len) // 4
        logit_rows = step.logit_rows
        rows = None if logit_rows is None else torch.tensor(logit_rows, dtype=torch.int64)
        table = self._tensor(step.block_table, torch.int32).view(sequences, -1)
        self._tables[:sequences, : table.shape[1]] = table
        plan = BASE
        if step.uses:
            uses = [use.row_use(self._decoder.config.num_layers) for use in step.uses]
            plan = StepPlan(self._banks, uses, rows) or BASE
        return Batch(
            token_ids=self._tensor(step.token_ids, torch.int64),
            positions=self._tensor(step.positions, torch.int64),
            slots=self._tensor(step.slots, torch.int64),
            attention=AttentionMetadata(
                query_start=self._tensor(step.query_start, torch.int32),
                context_len=self._tensor(step.context_len, torch.int32),
                block_table=self._tables[:sequences],
            ),
            logit_rows=rows,
            adapters=plan,
        )

    def _make_tables(self, num_blocks: int) -> Tensor:
        """int32 [most sequences, blocks of the longest], as wide in every step.

        A GPU's attention is compiled for the width: with that of the longest sequence in a step,
        contexts that grow would compile it again and again.
        """
        settings = self._settings
        longest = settings.max_model_len or self._decoder.config.max_context
        width = min(num_blocks, -(-longest // settings.kv_block_tokens))
        size = settings.max_running, width
        return torch.zeros(size, dtype=torch.int32, device=self._device)

    def _put(self, command: m.Put) -> m.Stored:
        count = sum(len(component.tensors) for component in command.components)
        frames = [self._pipe.recv_bytes() for _ in range(count)]
        try:
            fits = self._banks.put(command.slot, m.unpack(command.components, frames))
        except Exception as error:  # out of memory: rank 0 tells who asked
            log.exception("an adapter was not stored")
            return m.Stored(fits=False, error=repr(error))
        return m.Stored(fits)

    def _tensor(self, data: bytes, dtype: torch.dtype) -> Tensor:
        return gpu.to_device(torch.frombuffer(bytearray(data), dtype=dtype), self._device)

    def _answer(self, answer: m.Answer) -> None:
        self._pipe.send_bytes(self._encode(answer))


if __name__ == "__main__":
    main()
