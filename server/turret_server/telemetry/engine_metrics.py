"""The engine's latest statistics as metrics, read at the scrape: no series outlives its cause."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from turret_adapters.catalog import Catalog
from turret_server.engine.client import EngineClient
from turret_server.engine.messages import STEP_TOKENS
from turret_server.telemetry.families import counter, gauge


class EngineMetrics(Collector):
    """Gauges and counters of the engine and of the catalog.

    Args:
        engine: whose statistics are shown.
        catalog: of served adapters.
        model_name: the base model's canonical name.
    """

    def __init__(self, engine: EngineClient, catalog: Catalog, model_name: str) -> None:
        self.engine = engine
        self.catalog = catalog
        self.model_name = model_name

    def collect(self) -> Iterator[Metric]:
        """Everything, as of now."""
        yield from self.shared()
        yield from self._own()

    def shared(self) -> Iterator[Metric]:
        """What vLLM has too."""
        stats = self.engine.stats
        used = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
        yield self._gauge("num_requests_running", "Requests in the batch.", stats.running)
        yield self._gauge("num_requests_waiting", "Requests in the queue.", stats.waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", used)
        yield self._counter(
            "prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_queries
        )
        yield self._counter("prefix_cache_hits", "Of them found.", stats.prefix_hits)
        yield self._counter("num_preemptions", "Requests put back.", stats.preemptions)
        yield self._step_sizes()

    def _own(self) -> Iterator[Metric]:
        stats = self.engine.stats
        up = self.engine.ready is not None
        yield self._gauge("engine_up", "1 while the engine serves.", float(up))
        yield self._counter("engine_restarts", "Engines that ended.", self.engine.restarts)
        yield self._gauge("adapters_loaded", "Served adapter names.", len(self.catalog.names()))
        yield self._gauge(
            "adapters_resident", "Adapters on the device.", len(stats.resident_adapters)
        )
        yield self._gauge(
            "adapters_waiting", "Adapters that waiting requests need.", len(stats.waiting_adapters)
        )
        yield self._gauge(
            "adapter_host_bytes", "Adapters in host memory.", stats.host_adapter_bytes
        )
        yield self._counter("engine_steps", "Steps of the engine.", stats.steps)
        yield self._counter("engine_step_tokens", "Tokens of all steps.", stats.step_tokens)
        yield self._counter("engine_step_seconds", "Time in steps.", stats.step_seconds)

    def _step_sizes(self) -> Metric:
        """Tokens of a step; vLLM calls a histogram "total"."""
        stats = self.engine.stats
        family = HistogramMetricFamily(
            "turret_iteration_tokens_total", "Tokens of a step.", labels=["model_name"]
        )
        sizes = stats.step_sizes or [0] * (len(STEP_TOKENS) + 1)
        limits = [*(str(float(most)) for most in STEP_TOKENS), "+Inf"]
        buckets = list(zip(limits, accumulate(sizes), strict=True))
        family.add_metric([self.model_name], buckets, stats.step_tokens)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        return gauge(name, text, ("model_name",), [((self.model_name,), value)])

    def _counter(self, name: str, text: str, value: float) -> Metric:
        return counter(name, text, ("model_name",), [((self.model_name,), value)])
