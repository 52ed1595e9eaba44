"""Metrics that carry names: of models and adapters, and of tenants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from turret_adapters.catalog import Catalog
from turret_server.engine.client import EngineClient
from turret_server.telemetry.families import counter, gauge, summary
from turret_server.telemetry.usage import Usage, UsageByName


class ModelMetrics(Collector):
    """What was asked of bases, adapters and recipes, and where the adapters are.

    Residency is what the engine says of its device: it lasts however long nobody asks.

    Args:
        usage: by name.
        engine: tells what is on the device.
        catalog: of served adapters.
        is_served: does a name still mean something?
        is_shown: may this page tell the name?
    """

    def __init__(
        self,
        usage: UsageByName,
        engine: EngineClient,
        catalog: Catalog,
        is_served: Callable[[str], bool],
        is_shown: Callable[[str], bool],
    ) -> None:
        self._usage, self._engine, self._catalog = usage, engine, catalog
        self._is_served, self._is_shown = is_served, is_shown

    def collect(self) -> Iterator[Metric]:
        """Everything, as of now."""
        adapters = list(self._adapters())  # those on the device get labels, if there is room
        self._usage.keep(self._is_served)
        shown = [(name, used) for name, used in self._usage.items() if self._is_shown(name)]
        yield counter(
            "model_answers",
            "Finished answers by base, adapter or recipe name.",
            ("model", "finished_reason"),
            [((m, reason), n) for m, used in shown for reason, n in used.answers.items()],
        )
        yield from _tokens("model", "base, adapter or recipe name", shown)
        yield from adapters

    def _adapters(self) -> Iterator[Metric]:
        resident = set(self._engine.stats.resident_adapters)
        on_device: dict[str, int] = {}
        running: dict[str, int] = {}
        for record in self._catalog.records():
            name, is_resident = record.name, record.digest in resident
            if not self._is_shown(name) or not (is_resident or name in self._usage):
                continue
            label = self._usage.label(name) if is_resident else name
            uses = self._catalog.uses(record.digest)
            on_device[label] = on_device.get(label, 0) + is_resident
            running[label] = running.get(label, 0) + uses
        yield gauge(
            "adapter_resident",
            "1 while the adapter is on the device; of other, how many are.",
            ("adapter",),
            [((name,), n) for name, n in on_device.items()],
        )
        yield gauge(
            "adapter_requests_running",
            "Requests in flight that use the adapter.",
            ("adapter",),
            [((name,), n) for name, n in running.items()],
        )


class TenantMetrics(Collector):
    """What tenants used. For those alone who may know the tenants.

    Args:
        usage: by name.
        running: requests in flight by tenant.
        is_tenant: is there still a tenant of this name?
    """

    def __init__(
        self,
        usage: UsageByName,
        running: Callable[[], Mapping[str, int]],
        is_tenant: Callable[[str], bool],
    ) -> None:
        self._usage, self._running, self._is_tenant = usage, running, is_tenant

    def collect(self) -> Iterator[Metric]:
        """Everything, as of now."""
        self._usage.keep(self._is_tenant)
        shown = list(self._usage.items())

        def count(name: str, text: str, attribute: str) -> Metric:
            values = [((tenant,), getattr(used, attribute)) for tenant, used in shown]
            return counter(f"tenant_{name}", text, ("tenant",), values)

        yield count("requests", "Requests for answers that ended.", "requests")
        yield count("refused_requests", "Of them, for a quota or a full queue.", "refused")
        yield count("failed_requests", "Of them, through a fault of the server.", "failed")
        yield count("pages", "Pages of documents.", "pages")
        yield from _tokens("tenant", "tenant", shown)
        running = dict.fromkeys((tenant for tenant, _ in shown), 0)
        for name, number in self._running().items():
            label = self._usage.label(name)
            running[label] = running.get(label, 0) + number
        yield gauge(
            "tenant_requests_running",
            "Requests in flight.",
            ("tenant",),
            [((tenant,), number) for tenant, number in running.items()],
        )


def _tokens(kind: str, of: str, shown: list[tuple[str, Usage]]) -> Iterator[Metric]:
    labels = (kind,)
    yield counter(
        f"{kind}_prompt_tokens",
        f"Prompt tokens by {of}.",
        labels,
        [((name,), used.prompt_tokens) for name, used in shown],
    )
    yield counter(
        f"{kind}_cached_tokens",
        f"Of them found in the prefix cache, by {of}.",
        labels,
        [((name,), used.cached_tokens) for name, used in shown],
    )
    yield counter(
        f"{kind}_generation_tokens",
        f"Tokens generated by {of}.",
        labels,
        [((name,), used.completion_tokens) for name, used in shown],
    )
    yield summary(
        f"{kind}_time_to_first_token_seconds",
        f"Arrival to first token by {of}.",
        labels,
        [((name,), used.first_tokens, used.first_token_s) for name, used in shown],
    )
