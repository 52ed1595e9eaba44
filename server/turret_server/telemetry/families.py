"""Short ways to write the families of a custom collector."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)

Values = Iterable[tuple[tuple[str, ...], float]]


def gauge(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
    """A gauge named `turret_<name>`; one value for each tuple of label values."""
    family = GaugeMetricFamily(f"turret_{name}", text, labels=labels)
    for given, value in values:
        family.add_metric(given, value)
    return family


def counter(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
    """A counter named `turret_<name>_total`."""
    family = CounterMetricFamily(f"turret_{name}", text, labels=labels)
    for given, value in values:
        family.add_metric(given, value)
    return family


def summary(
    name: str,
    text: str,
    labels: tuple[str, ...],
    values: Iterable[tuple[tuple[str, ...], int, float]],
) -> Metric:
    """Count and sum, without quantiles."""
    family = SummaryMetricFamily(f"turret_{name}", text, labels=labels)
    for given, count, total in values:
        family.add_metric(given, count, total)
    return family
