"""Metrics of documents that requests carry."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram

from turret_server.errors import TurretError

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class DocumentMetrics:
    """Counts what is read. Labels are kinds of documents ("file", "ocr_result") and error codes.

    Args:
        registry: that the metrics are shown by.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"turret_document{name}", text, labels, registry=registry)

        self._read = counter("s_read", "Documents read.", "kind")
        self._pages = counter("_pages", "Pages of them.", "kind")
        self._dropped = counter("_pages_dropped", "Pages that did not fit into their prompt.")
        self._errors = counter("_errors", "Documents that were refused.", "kind", "code")
        self._seconds = Histogram(
            "turret_document_read_seconds",
            "Time to read a document, waiting for a process included.",
            ["kind"],
            registry=registry,
            buckets=_SECONDS,
        )

    @contextmanager
    def reading(self, kind: str) -> Iterator[None]:
        """Around the reading of one document."""
        began = time.perf_counter()
        try:
            yield
        except TurretError as error:
            self._errors.labels(kind, error.code or error.type).inc()
            raise
        self._read.labels(kind).inc()
        self._seconds.labels(kind).observe(time.perf_counter() - began)

    def pages(self, kind: str, count: int) -> None:
        """Count pages that were read."""
        self._pages.labels(kind).inc(count)

    def dropped(self, count: int) -> None:
        """Count pages that were left out of a prompt."""
        self._dropped.inc(count)
