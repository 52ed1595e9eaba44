"""Prometheus metrics: `turret_*`, and the same under the names that vLLM's dashboards read.

What is measured is measured once; `VllmNames` repeats it under `vllm:` at the scrape. Who may know
the tenants gets a page with them; everybody else one that names neither tenants nor adapters of a
tenant's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from turret_adapters.catalog import Catalog
from turret_server.engine.client import EngineClient
from turret_server.errors import TurretError
from turret_server.pipeline.names import is_owned
from turret_server.pipeline.recipe import COMPOSED, RecipeBook
from turret_server.telemetry.engine_metrics import EngineMetrics
from turret_server.telemetry.named_metrics import ModelMetrics, TenantMetrics
from turret_server.telemetry.record import RequestRecord
from turret_server.telemetry.tenancy_metrics import TenancyMetrics
from turret_server.telemetry.usage import Usage, UsageByName
from turret_server.telemetry.vllm_names import VllmAdapters, VllmNames
from turret_server.tenancy.service import Tenancy

_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160, 640, 2560,
)  # fmt: skip
_GAP_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1,
    2.5, 5, 10,
)  # fmt: skip
_TOKENS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 128)
_OUTCOMES = ("loaded", "refused", "failed")

disable_created_metrics()  # a time stamp per series tells nothing and triples the page


class Metrics:
    """All metrics of one server.

    Args:
        engine: whose statistics are shown.
        catalog: tells the names of adapters.
        recipes: tells the names of bases and recipes; the first base is vLLM's `model_name`.
        tenancy: who calls, and what is known of the ledger.
        max_labels: models with a label of their own, and tenants; see `UsageByName`.

    Attributes:
        registry: of what both pages show.
    """

    def __init__(
        self,
        engine: EngineClient,
        catalog: Catalog,
        recipes: RecipeBook,
        tenancy: Tenancy,
        max_labels: int,
    ) -> None:
        self.registry = CollectorRegistry()
        base: list[Counter | Histogram] = []
        self._model_name = model_name = recipes.base_names[0]
        label = {"model_name": model_name}

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            metric = Histogram(
                f"turret_{name}", text, ["model_name"], registry=self.registry, buckets=buckets
            )
            base.append(metric)
            return metric.labels(**label)

        def counter(name: str, text: str, *labels: str) -> Counter:
            names = ["model_name", *labels]
            metric = Counter(f"turret_{name}", text, names, registry=self.registry)
            base.append(metric)
            return metric

        self.first_token_s = histogram(
            "time_to_first_token_seconds", "Arrival to first token.", _SECONDS
        )
        self.token_gap_s = histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", _GAP_SECONDS
        )
        self.total_s = histogram("e2e_request_latency_seconds", "Arrival to last token.", _SECONDS)
        self.queued_s = histogram(
            "request_queue_time_seconds", "Arrival in the engine to first scheduling.", _SECONDS
        )
        self.prefill_s = histogram(
            "request_prefill_time_seconds", "First scheduling to first token.", _SECONDS
        )
        self.decode_s = histogram(
            "request_decode_time_seconds", "First token to last token.", _SECONDS
        )
        self.inference_s = histogram(
            "request_inference_time_seconds", "First scheduling to last token.", _SECONDS
        )
        self.prompt_size = histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.answer_size = histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self.asked_n = histogram("request_params_n", "Answers asked for.", _COUNTS)
        self.asked_tokens = histogram("request_params_max_tokens", "Largest answer.", _TOKENS)
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens served.").labels(**label)
        self.answer_tokens = counter("generation_tokens", "Tokens generated.").labels(**label)
        self.token_s = histogram(
            "request_time_per_output_token_seconds",
            "Mean time between the tokens of an answer.",
            _GAP_SECONDS,
        )
        self.longest_answer = histogram(
            "request_max_num_generation_tokens", "Tokens of a request's longest answer.", _TOKENS
        )
        self.computed_size = histogram(
            "request_prefill_kv_computed_tokens",
            "Prompt tokens of a request that were not cached.",
            _TOKENS,
        )
        self._success = counter("request_success", "Finished answers.", "finished_reason")
        self._scored = Counter(
            "turret_scored_texts", "Texts that scorers judged.", ["scorer"], registry=self.registry
        )
        self._score_s = Histogram(
            "turret_score_time_seconds",
            "Time to score the answers to a prompt, waiting included.",
            ["scorer"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._errors = Counter(
            "turret_errors", "Errors told to clients.", ["code"], registry=self.registry
        )
        self._responses = Counter(
            "turret_http_responses", "HTTP responses by status.", ["status"], registry=self.registry
        )
        self._loads = Counter(
            "turret_adapter_loads",
            "Adapters that were to be loaded, by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in _OUTCOMES:  # a counter that begins at its first failure has no rate
            self._loads.labels(outcome)
        self._load_s = Histogram(
            "turret_adapter_load_seconds",
            "Time to load an adapter, fetching included.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        ProcessCollector(registry=self.registry)
        live = EngineMetrics(engine, catalog, model_name)
        for collector in (live, VllmNames(live, base), TenancyMetrics(tenancy)):
            self.registry.register(collector)

        self._models, self._tenants = UsageByName(max_labels), UsageByName(max_labels)

        def is_served(name: str) -> bool:
            return catalog.get(name) is not None or recipes.served(name) or name == COMPOSED

        def is_open(name: str) -> bool:
            return recipes.served(name) or not is_owned(name)

        def models(page: CollectorRegistry, is_shown: Callable[[str], bool]) -> None:
            page.register(ModelMetrics(self._models, engine, catalog, is_served, is_shown))
            page.register(VllmAdapters(live, is_shown))

        self._open, self._whole = CollectorRegistry(), CollectorRegistry()
        models(self._open, is_open)
        models(self._whole, lambda name: True)
        self._whole.register(TenantMetrics(self._tenants, tenancy.meters.running, tenancy.knows))

    def scored(self, scorer: str, count: int, seconds: float) -> None:
        """Texts were scored."""
        self._scored.labels(scorer).inc(count)
        self._score_s.labels(scorer).observe(seconds)

    def answer(self, label: str, finish_reason: str, tokens: int) -> None:
        """Count an answer that has ended, for whatever reason."""
        self.answer_tokens.inc(tokens)
        self.answer_size.observe(tokens)
        self._success.labels(self._model_name, finish_reason).inc()
        self._models.of(label).answers[finish_reason] += 1

    def request(self, record: RequestRecord, status: int) -> None:
        """Count a request that has ended; status 0 is a client that left before the response."""
        self._responses.labels(str(status or 499)).inc()
        if record.error is not None:
            self._errors.labels(record.error.code or record.error.type).inc()
        if record.label:
            _add(self._models.of(record.label), record)
        if record.tenant and (record.label or record.pages or record.error):  # not a scrape
            _add(self._tenants.of(record.tenant), record)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around the loading of one adapter."""
        began = time.perf_counter()
        outcome = "failed"
        try:
            yield
            outcome = "loaded"
        except TurretError as error:
            outcome = "refused" if error.status < 500 else "failed"
            raise
        finally:
            self._loads.labels(outcome).inc()
            self._load_s.observe(time.perf_counter() - began)

    def forget(self, name: str) -> None:
        """Drop the series of a name that is no longer served."""
        self._models.forget(name)

    def text(self, *, with_tenants: bool) -> bytes:
        """The page that Prometheus reads."""
        page = self._whole if with_tenants else self._open
        return generate_latest(self.registry) + generate_latest(page)


def _add(usage: Usage, record: RequestRecord) -> None:
    usage.requests += 1
    if record.error is not None:
        usage.refused += record.error.status == 429
        usage.failed += record.error.status >= 500
    usage.prompt_tokens += record.prompt_tokens
    usage.cached_tokens += record.cached_tokens
    usage.completion_tokens += record.completion_tokens
    usage.pages += record.pages
    if record.first_token_s is not None:
        usage.first_tokens += 1
        usage.first_token_s += record.first_token_s
