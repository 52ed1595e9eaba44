"""Runs the decoder: as it is, or as a recorded graph where the step is a plain decode."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from turret_adapters.plan import StepPlan
from turret_adapters.site_weights import num_sites
from turret_kernels.entries import Entries
from turret_kernels.graph import Graph, MemoryPool, capture
from turret_kernels.rope_kv import KVCache
from turret_server.models.batch import Batch
from turret_server.models.decoder import Decoder

_MAX_GRAPHS = 128


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
        self._decoder, self._kv = decoder, kv
        self._has_graphs = decoder.has_graphs and kv[0].native
        self._graphs: OrderedDict[object, tuple[Graph, Tensor]] = OrderedDict()
        self._pool = MemoryPool()
        # What a graph reads lies in the builder's buffers, and here.
        self._residual = torch.zeros(max_rows, decoder.config.hidden_size, dtype=decoder.dtype)
        self._entries = Entries(
            slot=torch.zeros(4 * max_rows, dtype=torch.int32),
            weight=torch.zeros(4 * max_rows),
            row_start=torch.zeros(4 * max_rows, dtype=torch.int32),
            row_count=torch.zeros(4 * max_rows, dtype=torch.int32),
        )
        self._by_site = torch.zeros(num_sites(decoder.shape.num_layers), 4 * max_rows)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the batch, float32 [L, vocab]; valid until the next step.

        Args:
            batch: always from the same BatchBuilder.
        """
        key = self._key(batch)
        if key is None:
            return self._decoder.forward(batch, self._kv)
        self._fill(batch)
        found = self._graphs.get(key)
        if found is None:
            return self._record(key, batch)
        self._graphs.move_to_end(key)
        graph, logits = found
        graph.replay()
        return logits

    def _key(self, batch: Batch) -> object | None:
        """What a graph depends on; None if none can hold the step."""
        rows = batch.token_ids.shape[0]
        if (
            not self._has_graphs
            or batch.attention.context_len.shape[0] != rows
            or batch.logit_rows is not None
        ):
            return None
        if not isinstance(batch.adapters, StepPlan):
            return rows
        signature = batch.adapters.signature(rows)
        if signature is None or len(batch.adapters.entries) > self._entries.slot.shape[0]:
            return None
        return rows, signature

    def _fill(self, batch: Batch) -> None:
        """Put the embedded tokens and the adapters' entries where the graphs look for them."""
        rows = batch.token_ids.shape[0]
        torch.index_select(
            self._decoder.weights.embed, 0, batch.token_ids, out=self._residual[:rows]
        )
        batch.adapters.embed(self._residual[:rows], batch.token_ids)
        if isinstance(batch.adapters, StepPlan):
            entries, count = batch.adapters.entries, len(batch.adapters.entries)
            for name in ("slot", "weight", "row_start", "row_count"):
                getattr(self._entries, name)[:count] = getattr(entries, name)
            self._entries.count[0] = count
            self._entries.by_site = None
            if entries.by_site is not None:
                self._by_site[:, :count] = entries.by_site
                self._entries.by_site = self._by_site
            batch.adapters.entries = self._entries

    def _record(self, key: object, batch: Batch) -> Tensor:
        """Run the step eagerly and keep its calls."""
        rows = batch.token_ids.shape[0]
        with capture(self._pool) as calls:
            # A view: when the tensor itself dies its block is free for other graphs, whose steps
            # come after these logits were used.
            logits = self._decoder.run(self._residual[:rows], batch, self._kv).view(rows, -1)
        self._graphs[key] = Graph(calls), logits
        if len(self._graphs) > _MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return logits
