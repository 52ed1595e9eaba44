"""Spans: in memory, at a collector of a few lines, and with a collector that is not there."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from turret_server.errors import StartupError, TurretError
from turret_server.telemetry.spans import make_tracing
from turret_server.telemetry.tracing import Tracing
from turret_server.tenancy.service import Tenancy, static_keys

SECRET = "zebra-crossing-7431"
KEY = "tk-8f1b-secret"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def engine(engine):
    engine.text("one two")
    return engine


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def client(make_client, spans):
    return make_client(tracing=Tracing(SimpleSpanProcessor(spans)))


def one(spans):
    (span,) = spans.get_finished_spans()
    spans.clear()
    return span


async def test_a_chat_is_one_server_span_by_the_conventions(client, spans):
    before = time.time_ns()
    answer = await client.chat(temperature=0.5, top_k=7, max_tokens=9, n=2)
    span = one(spans)
    assert (span.name, span.kind) == ("chat demo", SpanKind.SERVER)
    assert before <= span.start_time < span.end_time <= time.time_ns()
    assert span.parent is None
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "turret",
        "gen_ai.request.model": "demo",
        "gen_ai.response.model": "demo",
        "gen_ai.response.id": answer.json["id"],
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 7,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stream": False,
        "gen_ai.response.finish_reasons": ("stop", "stop"),
        "gen_ai.usage.input_tokens": answer.json["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": answer.json["usage"]["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.latency.time_in_queue": 0.001,
        "gen_ai.latency.time_in_model_prefill": 0.002,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
        "turret.request.id": answer.headers["x-request-id"],
        "turret.adapter.count": 0,
    }
    assert expected.items() <= dict(span.attributes).items()
    seconds = [
        span.attributes[f"gen_ai.latency.{name}"]
        for name in ("time_to_first_token", "time_in_model_decode", "e2e")
    ]
    assert 0 < seconds[0] <= seconds[2]
    assert seconds[0] + seconds[1] == pytest.approx(seconds[2])
    assert span.status.status_code is StatusCode.UNSET


async def test_an_adapter_is_a_model_of_its_own(client, engine, spans):
    await client.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql"})
    spans.clear()
    await client.complete(model="sql", stream=True, max_tokens=2)
    span = one(spans)
    assert span.name == "text_completion demo:sql"
    assert span.attributes["turret.adapter.name"] == "sql"
    assert span.attributes["turret.adapter.digests"] == tuple(engine.loaded)
    assert span.attributes["gen_ai.response.model"] == "sql"
    assert span.attributes["gen_ai.request.stream"] is True


async def test_the_trace_of_the_caller_goes_on(client, spans):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    await client.post("/v1/completions", {"prompt": "Hi", "max_tokens": 1}, headers)
    span = one(spans)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT


@pytest.mark.parametrize("given", ["nonsense", f"00-{TRACE}-{PARENT}", "00-" + "0" * 32, "\u00ff"])
async def test_a_malformed_trace_begins_a_new_one(client, spans, given):
    body = {"prompt": "Hi", "max_tokens": 1}
    answer = await client.post("/v1/completions", body, {"traceparent": given})
    assert answer.status == 200
    assert one(spans).parent is None


async def test_a_caller_that_does_not_sample_is_obeyed(client, spans):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    await client.post("/v1/completions", {"prompt": "Hi", "max_tokens": 1}, headers)
    assert spans.get_finished_spans() == ()


async def test_errors_are_told_by_code(client, engine, spans):
    await client.chat(temperature=9)
    refused = one(spans)
    assert refused.attributes["error.type"] == "invalid_value"
    assert refused.status.status_code is StatusCode.UNSET  # the client's fault, not the server's
    engine.fail_after, engine.failure = 1, TurretError(f"it failed on {SECRET}", SECRET)
    await client.chat()
    failed = one(spans)
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["http.response.status_code"] == 500
    assert SECRET not in failed.to_json()


async def test_probes_make_no_spans_and_other_routes_are_named_by_route(client, spans):
    for path in ("/health", "/ready", "/metrics", "/version"):
        await client.get(path)
    assert spans.get_finished_spans() == ()
    await client.get("/v1/models/demo")
    assert one(spans).name == "GET /v1/models/{model:path}"
    await client.get(f"/{SECRET}")
    span = one(spans)
    assert span.name == "GET"
    assert SECRET not in span.to_json()


async def test_nothing_that_was_written_is_told(make_client, engine, spans):
    engine.text(f"out-{SECRET}")
    tenancy = Tenancy(static_keys([KEY]))
    client = make_client(tracing=Tracing(SimpleSpanProcessor(spans)), tenancy=tenancy)
    for stream in (False, True):
        body = {
            "messages": [{"role": "user", "content": f"in-{SECRET}"}],
            "stop": [f"stop-{SECRET}"],
            "user": SECRET,
            "stream": stream,
        }
        headers = {"authorization": f"Bearer {KEY}", "x-note": SECRET}
        assert (await client.post(f"/v1/chat/completions?q={SECRET}", body, headers)).status == 200
        span = one(spans)
        assert SECRET not in span.to_json()
        assert KEY not in span.to_json()
        assert span.attributes["turret.tenant"].startswith("key-")


async def test_the_log_names_the_trace(client, spans, caplog):
    lines = []
    logger = logging.getLogger("turret")
    caplog.set_level(logging.INFO, logger.name)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.fields)
    logger.addHandler(handler)
    try:
        await client.complete(max_tokens=1)
    finally:
        logger.removeHandler(handler)
    assert lines[-1]["trace_id"] == f"{one(spans).context.trace_id:032x}"


@pytest.fixture
def collector():
    """A collector of OTLP over HTTP, and the spans that it got."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("by", ["flag", "variable"])
async def test_a_collector_gets_the_spans(make_client, collector, monkeypatch, by):
    url, got = collector
    if by == "variable":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    tracing = make_tracing(url if by == "flag" else "")
    await make_client(tracing=tracing).complete(max_tokens=1)
    tracing.close()
    ((path, request),) = got
    assert path == "/v1/traces"
    (resource,) = request.resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}[
        "service.name"
    ] == "turret"
    (span,) = resource.scope_spans[0].spans
    assert span.name == "text_completion demo"


async def test_without_a_collector_requests_go_on_and_one_warning_is_logged(
    make_client, monkeypatch, caplog
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    monkeypatch.setattr(logging.getLogger("turret"), "propagate", True)
    tracing = make_tracing("http://127.0.0.1:9")  # the port of "discard"
    client = make_client(tracing=tracing)
    began = time.perf_counter()
    for _ in range(4):
        assert (await client.complete(max_tokens=1)).status == 200
    assert time.perf_counter() - began < 1.0
    tracing.close()
    messages = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert messages == ["traces_not_exported"]


def test_nobody_who_does_not_ask_pays(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    code = (
        "import sys, turret_server.server as s; assert s.make_tracing('') is None;"
        "print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]
)
def test_the_variables_can_switch_it_off(monkeypatch, name, value):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    assert make_tracing("") is None


def test_what_cannot_be_sent_is_refused_at_the_start(monkeypatch):
    with pytest.raises(StartupError, match="no URL"):
        make_tracing("collector:4318")
    monkeypatch.setitem(sys.modules, "turret_server.telemetry.tracing", None)
    with pytest.raises(StartupError, match="turret\\[otel\\]"):
        make_tracing("http://collector:4318")
