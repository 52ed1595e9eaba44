"""One OpenTelemetry span per request, sent over OTLP from a thread that nobody waits for.

Needs `turret[otel]`; imported only where traces are asked for.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import turret_server
from turret_server.telemetry.genai import ended
from turret_server.telemetry.logging import logger
from turret_server.telemetry.record import RequestRecord

_PATH = "/v1/traces"


class Tracing:
    """Turns the records of requests into spans.

    Args:
        processor: takes the spans; must not block.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        resource = Resource.create(
            {
                SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "turret"),
                SERVICE_VERSION: turret_server.__version__,
            }
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("turret", turret_server.__version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_collector(cls, endpoint: str = "") -> Tracing:
        """Send spans to a collector; those that it does not take in time are dropped.

        Args:
            endpoint: its root; "" for what OpenTelemetry's own variables say.
        """
        url = None
        if endpoint:
            url = endpoint.rstrip("/").removesuffix(_PATH) + _PATH
        # What goes wrong is told once, by _Droppable.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        return cls(BatchSpanProcessor(_Droppable(OTLPSpanExporter(endpoint=url))))

    def end(
        self,
        record: RequestRecord,
        scope: MutableMapping[str, Any],
        headers: Mapping[str, str],
        status: int,
    ) -> None:
        """Make the span of a request that has ended, and tell its trace to the record."""
        now_ns = time.time_ns()
        started_ns = now_ns - round((time.perf_counter() - record.started) * 1e9)
        route = getattr(scope.get("route"), "path", "")
        attributes = {"http.request.method": scope["method"], **(record.span or {})}
        if route:
            attributes["http.route"] = route
        if (server := scope.get("server")) is not None:
            attributes["server.address"], attributes["server.port"] = server[0], server[1] or 0
        name = f"{scope['method']} {route}".rstrip()
        if operation := attributes.get("gen_ai.operation.name"):
            name = f"{operation} {attributes['gen_ai.request.model']}"
        carrier = {n: headers[n] for n in ("traceparent", "tracestate") if n in headers}
        span = self._tracer.start_span(
            name,
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=attributes | ended(record, status),
            start_time=started_ns,
        )
        if record.error is not None and record.error.status >= 500:
            # Without its message, which may quote the request.
            span.set_status(Status(StatusCode.ERROR))
        span.end(now_ns)
        record.trace_id = f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Send what is left, which may take as long as the collector is waited for."""
        self._provider.shutdown()


class _Droppable(SpanExporter):
    """An exporter whose failures cost one warning, until it works again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send, or drop."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # whatever it is, requests must not hear of it
            result, reason = SpanExportResult.FAILURE, type(error).__name__
        else:
            reason = "the collector does not take them"
        is_failing = result is not SpanExportResult.SUCCESS
        if is_failing and not self._is_failing:
            fields = {"dropped": len(spans), "reason": reason}
            logger.warning("traces_not_exported", extra={"fields": fields})
        self._is_failing = is_failing
        return result

    def shutdown(self) -> None:
        """Interrupts what waits for the collector."""
        self._exporter.shutdown()
