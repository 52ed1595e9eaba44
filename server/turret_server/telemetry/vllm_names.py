"""The same under the names of vLLM, which its dashboards, llm-d and the gateway's routers read."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from turret_server.telemetry.engine_metrics import EngineMetrics


class VllmNames(Collector):
    """Repeats the shared metrics as `vllm:*`, and tells the shape of the KV cache.

    Args:
        engine: shared metrics of the engine.
        others: that vLLM has too.
    """

    def __init__(self, engine: EngineMetrics, others: Sequence[Counter | Histogram]) -> None:
        self._engine, self._others = engine, others

    def collect(self) -> Iterator[Metric]:
        """The copies, then what only vLLM names."""
        for source in self._others:
            yield from map(_renamed, source.collect())
        yield from map(_renamed, self._engine.shared())
        if (ready := self._engine.engine.ready) is not None:
            cache = GaugeMetricFamily(
                "vllm:cache_config_info",
                "Shape of the KV cache.",
                labels=["block_size", "num_gpu_blocks"],
            )
            cache.add_metric([str(ready.kv_block_tokens), str(ready.kv_blocks)], 1)
            yield cache


class VllmAdapters(Collector):
    """Where the adapters are, as routers read it: the name is vLLM's, the residency is true.

    Args:
        engine: and its catalog.
        is_shown: may this page tell the name?
    """

    def __init__(self, engine: EngineMetrics, is_shown: Callable[[str], bool]) -> None:
        self._source, self._is_shown = engine, is_shown

    def collect(self) -> Iterator[Metric]:
        """One series, whose labels list the names."""
        engine, names = self._source.engine, defaultdict(list)
        for record in self._source.catalog.records():
            if self._is_shown(record.name):
                names[record.digest].append(record.name)

        def listed(digests: Sequence[str]) -> str:
            return ",".join(sorted(name for digest in digests for name in names.get(digest, ())))

        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters on the device and adapters waited for; the value is the time of this page.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        stats = engine.stats
        labels = [listed(stats.resident_adapters), listed(stats.waiting_adapters)]
        family.add_metric([str(self._capacity()), *labels], time.time())
        yield family

    def _capacity(self) -> int:
        """How many adapters fit: the resident ones, and as many of the largest rank as are free.

        The device pool counts rank rows, not adapters; routers ask for a number of adapters.
        """
        engine = self._source.engine
        if (ready := engine.ready) is None:
            return 0
        ranks = {record.digest: record.rank for record in self._source.catalog.records()}
        resident = engine.stats.resident_adapters
        free = ready.max_adapter_rank_rows - sum(ranks.get(digest, 0) for digest in resident)
        return len(resident) + max(0, free) // max([*ranks.values(), 1])


def _renamed(metric: Metric) -> Metric:
    copy = Metric(_vllm(metric.name), metric.documentation, metric.type)
    copy.samples = [sample._replace(name=_vllm(sample.name)) for sample in metric.samples]
    return copy


def _vllm(name: str) -> str:
    return "vllm:" + name.removeprefix("turret_")
