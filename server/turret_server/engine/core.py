"""The engine: one step after another, or one ahead of the other. It reads like `Engine.step`."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from turret_adapters.banks.sharded import ShardedBanks
from turret_adapters.errors import AdapterError
from turret_adapters.plan import BASE, StepPlan
from turret_adapters.site_weights import SiteWeights
from turret_adapters.store import AdapterStore
from turret_kernels.quantized import Method
from turret_server.engine.auxiliary import Auxiliary
from turret_server.engine.batch import BatchBuilder, row_uses
from turret_server.engine.blocks import BlockPool
from turret_server.engine.device import (
    kv_cache_bytes,
    rank_device,
    resolve_device,
    resolve_dtype,
    resolve_overlap,
    resolve_quantization,
)
from turret_server.engine.draw import Draw
from turret_server.engine.followers import Followers
from turret_server.engine.fusion import member_requests
from turret_server.engine.grammar import GrammarCompiler
from turret_server.engine.grammar_queue import GrammarQueue
from turret_server.engine.messages import (
    STEP_TOKENS,
    EngineReady,
    EngineRequest,
    EngineStats,
    ErrorInfo,
    TokenEvent,
)
from turret_server.engine.runner import Runner
from turret_server.engine.sampler import sample_step
from turret_server.engine.scheduler import Limits, Scheduler
from turret_server.engine.sequence import Sequence
from turret_server.engine.settings import EngineSettings
from turret_server.engine.shares import Share
from turret_server.engine.stores import Gate, Stores, adapter_error, store_limits
from turret_server.errors import StartupError
from turret_server.models.config import DecoderConfig
from turret_server.models.decoder import Decoder
from turret_server.models.shape import stored_shape
from turret_server.models.weights import check_quantization


class Engine:
    """The base model with its KV cache, its adapters, and the requests in flight.

    Args:
        settings: what to serve, and how large.
        wake: called from the adapter loader's thread when there may be something to do.
        progress: called with (bytes read, bytes in all) while the weights load.
        folder: where processes of one engine may meet; None for the system's own.

    Attributes:
        steps: that were launched.
    """

    def __init__(
        self,
        settings: EngineSettings,
        wake: Callable[[], None] = lambda: None,
        progress: Callable[[int, int], None] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.settings = settings
        model, device = Path(settings.model), resolve_device(settings.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # kernels, graphs and events are of the current one
        dtype = resolve_dtype(settings.dtype, device)
        quantization = resolve_quantization(settings.quantization, device, dtype)
        self._overlaps = resolve_overlap(settings.overlap, device, settings.tensor_parallel)
        if settings.auxiliaries and settings.tensor_parallel > 1:
            raise StartupError(
                f"auxiliary models cannot be served in {settings.tensor_parallel} processes",
                "only the main model is split",
                "Use --tensor-parallel 1, or leave --auxiliary out.",
            )
        config = DecoderConfig.from_folder(model)
        # Before the main model, whose cache takes what memory they leave.
        self._auxiliaries = {
            name: Auxiliary(name, Path(folder), settings, device, dtype, config.vocab_size, wake)
            for name, folder in settings.auxiliaries.items()
        }
        max_len = settings.max_model_len or config.max_context
        self.followers = _start_followers(settings, config, quantization, device, folder)
        peers = None if self.followers is None else self.followers.peers
        self.decoder = Decoder.load(model, dtype, device, max_len, progress, peers, quantization)
        block_bytes = self.decoder.kv_bytes_per_token * settings.kv_block_tokens
        bounds = store_limits(settings, device)
        pools = bounds.pool_bytes(self.decoder.shape, dtype)
        cache_bytes = kv_cache_bytes(settings.kv_cache_bytes, device, pools)
        if self.followers is not None:
            cache_bytes = min(cache_bytes, self.followers.loaded())
        num_blocks = cache_bytes // block_bytes
        self.max_model_len = min(max_len, num_blocks * settings.kv_block_tokens)
        wanted = settings.max_model_len or 1
        if self.max_model_len < wanted:
            raise StartupError(
                f"a context of {wanted} tokens does not fit the KV cache",
                f"{cache_bytes >> 20} MiB hold {self.max_model_len} tokens, and the adapters' rank "
                f"rows may take {pools >> 20} MiB",
                "Raise --kv-cache-gib, or lower --max-model-len or --adapter-rank-rows.",
            )
        shape, banks = self.decoder.shape, None
        if self.followers is not None:
            shape = stored_shape(model, dtype, quantization, device)
            banks = ShardedBanks(
                self.decoder.shape,
                bounds.max_resident,
                bounds.max_rank_rows,
                device,
                dtype,
                self.decoder.bias,
                bounds.max_delta_bytes,
                bounds.max_neuron_bytes,
                bounds.max_ternary_rows,
                whole=shape,
                peers=self.followers,
            )
        self.store = AdapterStore(
            shape,
            bounds,
            device=device,
            dtype=dtype,
            base_bias=self.decoder.bias,
            on_resident=wake,
            banks=banks,
        )
        auxiliary_stores = {name: one.store for name, one in self._auxiliaries.items()}
        self.stores = Stores({"": self.store, **auxiliary_stores})
        limits = Limits(
            max_running=settings.max_running,
            max_step_tokens=settings.max_step_tokens,
            max_model_len=self.max_model_len,
        )
        blocks = BlockPool(num_blocks, settings.kv_block_tokens)
        rooms = {name: auxiliary.room for name, auxiliary in self._auxiliaries.items()}
        self.scheduler = Scheduler(limits, blocks, Gate(self.store), auxiliaries=rooms)
        max_blocks = -(-self.max_model_len // settings.kv_block_tokens)
        # One more than the pool knows of, for the rows that pad a graph's batch.
        kv = self.decoder.allocate_kv(num_blocks + 1, settings.kv_block_tokens)
        if self.followers is not None:
            self.followers.begin(num_blocks + 1)
        self._runner = Runner(self.decoder, kv, settings.max_running)
        self._builder = BatchBuilder(
            max(settings.max_step_tokens, settings.max_running),
            settings.max_running,
            max_blocks,
            settings.kv_block_tokens,
            device,
            self._runner.padding(scratch_block=num_blocks),
        )
        self._grammars = GrammarQueue(self._grammar_compiler, wake)
        self._in_flight: tuple[list[Share], Draw] | None = None
        self.steps = self._step_tokens = 0
        self._step_sizes = [0] * (len(STEP_TOKENS) + 1)
        self._step_seconds = 0.0

    def submit(self, request: EngineRequest) -> TokenEvent | None:
        """Queue a request; an event if it is refused."""
        members = [] if request.fusion is None else member_requests(request, request.fusion)
        for member in members:
            if member.model and member.model not in self._auxiliaries:
                what = f"the model {member.model!r} cannot take part in the fusion"
                why = "it is no auxiliary model of this engine"
                return _refusal(request, ErrorInfo("Unprocessable", what, why))
        try:
            sequence = self._sequence(request)
            if members:
                sequence.others = tuple(self._sequence(member) for member in members)
                for model, digests in sequence.adapters.items():
                    self.stores[model].check(digests)
        except AdapterError as error:
            return _refusal(request, adapter_error(error))
        if obstacle := self.scheduler.obstacle(sequence):
            return _refusal(request, obstacle)
        if request.sampling.prompt_logprobs is not None:
            sequence.prompt_logprobs = [None]
        if request.sampling.grammar is not None:
            self._grammars.put(sequence)
        else:
            self.scheduler.add(sequence)
        return None

    def cancel(self, request_id: str) -> None:
        """Free whatever a request holds; an unknown id is fine."""
        if not self._grammars.cancel(request_id):
            self.scheduler.cancel(request_id)

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """Run whoever is ready for one step; events for the clients.

        Where steps overlap, these are of the step before: this one is launched, and its tokens are
        drawn while it runs, when those before them are known.
        """
        began = time.perf_counter()
        refused = [*self._admit_compiled()]
        shares, events = self.scheduler.schedule()
        events += refused
        if not shares and self._in_flight is None:
            return events
        logits = self._forward(shares) if shares else None
        events += self._finish()
        if logits is not None:
            draw = sample_step(logits, shares)
            self.scheduler.advance(shares, draw.rows)
            self._in_flight = shares, draw
            self.steps += 1
            tokens = sum(share.count for share in shares)
            self._step_tokens += tokens
            self._step_sizes[bisect_left(STEP_TOKENS, tokens)] += 1
            if not self._overlaps or not self.scheduler.running:
                events += self._finish()
        self._step_seconds += time.perf_counter() - began
        return events

    def _finish(self) -> list[TokenEvent]:
        """Wait for the step in flight, if there is one."""
        if self._in_flight is None:
            return []
        shares, draw = self._in_flight
        self._in_flight = None
        return self.scheduler.update(shares, draw.results())

    def _forward(self, shares: list[Share]) -> Tensor:
        """The logits of a step, of all its models: float32 [L, V]."""
        drawn = None if self._in_flight is None else self._in_flight[1].tokens
        if not self._auxiliaries:
            return self._forward_main(shares, drawn)
        parts = []
        for model, group in groupby(shares, key=lambda share: share.sequence.request.model):
            mine = list(group)
            auxiliary = self._auxiliaries.get(model)
            forward = self._forward_main if auxiliary is None else auxiliary.run
            parts.append(forward(mine, drawn))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _forward_main(self, shares: list[Share], drawn: Tensor | None) -> Tensor:
        """The main model's logits of its shares: float32 [L, V]."""
        batch = self._builder.build(shares, drawn)
        uses = row_uses(shares, len(batch.token_ids))
        if self.followers is not None:
            self.followers.step(self._builder.arrays(batch), batch.logit_rows, uses)
        if uses:
            batch.adapters = StepPlan(self.store.banks, uses, batch.logit_rows) or BASE
        logits = self._runner.forward(batch)
        if batch.logit_rows is None:
            logits = logits[: len(shares)]  # without the rows that pad the batch
        return logits

    @property
    def idle(self) -> bool:
        """Nobody runs, nobody waits, and no step is in flight."""
        scheduler = self.scheduler
        return not (scheduler.running or len(scheduler.waiting) or self._in_flight)

    @property
    def ready(self) -> EngineReady:
        """What the API needs to know of this engine."""
        blocks = self.scheduler.blocks
        return EngineReady(
            pid=os.getpid(),
            max_model_len=self.max_model_len,
            vocab_size=self.decoder.config.vocab_size,
            kv_blocks=blocks.num_blocks,
            kv_block_tokens=blocks.block_tokens,
            dtype=str(self.decoder.dtype).removeprefix("torch."),
            quantization=self.decoder.quantization or "none",
            device=str(self.decoder.device),
            max_adapter_rank_rows=self.settings.adapter_rank_rows,
            weights_digest=self.decoder.weights.digest,
            auxiliaries={name: one.info for name, one in self._auxiliaries.items()},
        )

    @property
    def stats(self) -> EngineStats:
        """Gauges and counters of this moment."""
        scheduler, blocks = self.scheduler, self.scheduler.blocks
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_blocks_used=blocks.num_blocks - blocks.num_free,
            kv_blocks_total=blocks.num_blocks,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            steps=self.steps,
            step_tokens=self._step_tokens,
            step_sizes=list(self._step_sizes),
            step_seconds=self._step_seconds,
            resident_adapters=self.stores.resident(),
            host_adapters=self.stores.on_host(),
            running_adapters=_distinct(scheduler.running),
            waiting_adapters=_distinct(scheduler.waiting),
            host_adapter_bytes=self.stores.host_bytes,
        )

    @property
    def phases(self) -> list[tuple[object, str]]:
        """What a step consists of: objects, and the methods of theirs that it calls."""
        return [
            (self.scheduler, "schedule"),
            (self._builder, "build"),
            (self._runner, "forward"),
            (self.scheduler, "update"),
        ]

    def close(self) -> None:
        """End its threads and processes; a process that ends need not."""
        self.stores.close()
        if self.followers is not None:
            self.followers.close()

    def _sequence(self, request: EngineRequest) -> Sequence:
        digests = [use.digest for use in request.adapters]
        weights = [use.weight for use in request.adapters]
        store = self.stores[request.model]
        store.check(digests)
        reach = store.reach(digests, weights, request.prompt)
        by_site = tuple(SiteWeights.of(weight, store.num_layers) for weight in weights)
        sequence = Sequence.of(request, time.monotonic(), reach, by_site)
        if request.model and (ids := self._auxiliaries[request.model].ids) is not None:
            sequence.tokens[sequence.num_virtual :] = ids.prompt(request.prompt)
            sequence.banned = ids.banned
        return sequence

    def _admit_compiled(self) -> Iterator[TokenEvent]:
        for sequence, error in self._grammars.take():
            if error is not None:
                yield _refusal(sequence.request, error)
            else:
                self.scheduler.add(sequence)

    def _grammar_compiler(self) -> GrammarCompiler:
        return GrammarCompiler(
            Path(self.settings.model) / "tokenizer.json",
            self.decoder.config.vocab_size,
            self.settings.eos_token_ids,
        )


def _start_followers(
    settings: EngineSettings,
    config: DecoderConfig,
    quantization: Method | None,
    device: torch.device,
    folder: Path | None,
) -> Followers | None:
    """The processes of the other ranks, if there are to be any.

    Raises:
        StartupError: the model cannot be split so, or a rank has no device.
    """
    if settings.tensor_parallel == 1:
        return None
    config.split(settings.tensor_parallel)
    if quantization is not None:
        check_quantization(Path(settings.model), config, quantization, settings.tensor_parallel)
    for rank in range(settings.tensor_parallel):
        rank_device(settings.device, rank)
    return Followers(settings, device, folder)


def _refusal(request: EngineRequest, error: ErrorInfo) -> TokenEvent:
    return TokenEvent(id=request.id, finish_reason="error", error=error)


def _distinct(sequences: Iterable[Sequence]) -> list[str]:
    return sorted({digest for s in sequences for uses in s.adapters.values() for digest in uses})
