"""Runs the decoder: as it is, or as a recorded graph where the step is a plain decode."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from turret_adapters.plan import StepPlan
from turret_adapters.site_weights import num_sites
from turret_kernels.entries import Entries
from turret_kernels.graph import Recorder as NativeRecorder
from turret_kernels.rope_kv import KVCache
from turret_server.engine.batch import Padding
from turret_server.models.batch import Batch
from turret_server.models.decoder import Decoder

_MAX_GRAPHS = 128
_MAX_STACKED = 4  # adapters per row, on average; a step with more is not recorded


class Recorder(Protocol):
    """See `turret_kernels.graph.Recorder`."""

    def record(self, prepare: Callable[[], None], run: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """Record `run` into something with a `replay`, and run it once."""
        ...


class Runner:
    """The decoder with its cache.

    Graphs are recorded per number of rows and per set of adapted sites, the first time each is
    met; the base alone has graphs of its own, in which nothing of the adapters is launched.

    Args:
        decoder: the model.
        kv: its cache.
        max_rows: most sequences in one step.
    """

    def __init__(self, decoder: Decoder, kv: list[KVCache], max_rows: int) -> None:
        self._decoder, self._kv, self._max_rows = decoder, kv, max_rows
        self._recorder = _recorder(decoder, kv)
        self._graphs: OrderedDict[object, tuple[Any, Tensor]] = OrderedDict()
        # What a graph reads lies in the builder's buffers, and here.
        device, hidden = decoder.device, decoder.config.hidden_size
        self._residual = torch.zeros(max_rows, hidden, dtype=decoder.dtype, device=device)
        self._entries = Entries.buffers(
            _MAX_STACKED * max_rows, max_rows, num_sites(decoder.config.num_layers), device
        )
        # Where all graphs leave their logits on a GPU: each would keep its own, megabytes a row.
        self._logits: Tensor | None = None
        if self._recorder is not None and device.type == "cuda":
            size = max_rows, decoder.config.vocab_size
            self._logits = torch.empty(size, dtype=torch.float32, device=device)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the batch, float32 [L, vocab]; valid until the next step.

        Args:
            batch: always from the same BatchBuilder.
        """
        key = self._key(batch)
        if key is None or self._recorder is None:
            if isinstance(batch.adapters, StepPlan):
                batch.adapters.entries = batch.adapters.entries.to(self._decoder.device)
            return self._decoder.forward(batch, self._kv)
        entries = batch.adapters.entries if isinstance(batch.adapters, StepPlan) else None
        found = self._graphs.get(key)
        if found is None:
            return self._record(self._recorder, key, batch, entries)
        self._graphs.move_to_end(key)
        self._fill(batch, entries)
        graph, logits = found
        graph.replay()
        return logits

    def padding(self, scratch_block: int) -> Padding | None:
        """How decode steps are padded; None where every number of rows has graphs of its own.

        A CUDA graph takes a second and some megabytes, the CPU's a few milliseconds.

        Args:
            scratch_block: a block of the cache for the rows that are added.
        """
        if self._recorder is None or self._decoder.device.type != "cuda":
            return None
        small = [rows for rows in (1, 2, 4) if rows < self._max_rows]
        return Padding((*small, *range(8, self._max_rows, 8), self._max_rows), scratch_block)

    def _key(self, batch: Batch) -> object | None:
        """What a graph depends on; None if none can hold the step."""
        rows = batch.token_ids.shape[0]
        if (
            self._recorder is None
            or batch.attention.context_len.shape[0] != rows
            or batch.logit_rows is not None
            or rows > self._max_rows
        ):
            return None
        if not isinstance(batch.adapters, StepPlan):
            return rows
        signature, entries = batch.adapters.signature(rows), batch.adapters.entries
        if signature is None or len(entries) > self._entries.slot.shape[0]:
            return None
        # A GPU's kernels are launched for as many adapters as there are on one row.
        depth = entries.depth if self._decoder.device.type == "cuda" else None
        return rows, signature, depth

    def _fill(self, batch: Batch, entries: Entries | None) -> None:
        """Put the embedded tokens and the adapters' entries where the graphs look for them."""
        if isinstance(batch.adapters, StepPlan) and entries is not None:
            # Once: the buffers copy what is on the device then, which waits for nothing.
            entries = entries.to(self._residual.device)
            batch.adapters.entries = entries
        self._decoder.embed(batch, out=self._residual[: batch.token_ids.shape[0]])
        if isinstance(batch.adapters, StepPlan) and entries is not None:
            self._entries.assign(entries)
            batch.adapters.entries = self._entries

    def _record(
        self, recorder: Recorder, key: object, batch: Batch, entries: Entries | None
    ) -> Tensor:
        """Run the step and keep it as a graph."""
        rows = batch.token_ids.shape[0]

        def run() -> Tensor:
            logits = self._decoder.run(self._residual[:rows], batch, self._kv)
            return logits if self._logits is None else self._logits[:rows].copy_(logits)

        graph, logits = recorder.record(lambda: self._fill(batch, entries), run)
        self._graphs[key] = graph, logits
        if len(self._graphs) > _MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return logits


def _recorder(decoder: Decoder, kv: list[KVCache]) -> Recorder | None:
    """What records steps on the decoder's device, None where nothing can."""
    if decoder.is_shard:
        return None  # no graph holds what the processes tell each other
    if decoder.quantization is not None and not decoder.has_graphs:
        return None  # torchao's and torch's products, which no recorder here has been tried on
    if decoder.device.type == "cuda":
        from turret_kernels.gpu.graph import Recorder as CudaRecorder

        return CudaRecorder()
    return NativeRecorder() if decoder.has_graphs and kv[0].native else None
