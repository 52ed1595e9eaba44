from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from turret_adapters.catalog import AdapterRecord
from turret_server.errors import EngineUnavailable
from turret_server.telemetry.record import RequestRecord


async def scrape(client, headers=None):
    """What is on the page."""
    return parsed((await client.get("/metrics", headers)).body.decode())


def parsed(page):
    """{(name, labels): value} of everything."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(samples, name, **labels):
    return samples[name, tuple(sorted(labels.items()))]


BASE = {"model_name": "demo"}


async def test_requests_are_measured_under_both_names(client, engine):
    engine.text("one two three")
    await client.chat(n=2)
    await client.complete("Hi", stream=True, max_tokens=2)
    samples = await scrape(client)
    for prefix in ("turret_", "vllm:"):
        assert value(samples, f"{prefix}time_to_first_token_seconds_count", **BASE) == 3
        assert value(samples, f"{prefix}inter_token_latency_seconds_count", **BASE) == 3 + 3 + 1
        assert value(samples, f"{prefix}e2e_request_latency_seconds_count", **BASE) == 3
        assert value(samples, f"{prefix}request_queue_time_seconds_sum", **BASE) == pytest.approx(
            0.003
        )
        assert value(samples, f"{prefix}request_prefill_time_seconds_count", **BASE) == 3
        assert value(samples, f"{prefix}request_decode_time_seconds_count", **BASE) == 3
        assert value(samples, f"{prefix}request_inference_time_seconds_count", **BASE) == 3
        assert value(samples, f"{prefix}generation_tokens_total", **BASE) == 4 + 4 + 2
        assert value(samples, f"{prefix}request_generation_tokens_sum", **BASE) == 10
        prompts = len(engine.requests[0].prompt) + 1
        assert value(samples, f"{prefix}prompt_tokens_total", **BASE) == prompts
        assert value(samples, f"{prefix}request_prompt_tokens_count", **BASE) == 2
        assert value(samples, f"{prefix}request_params_n_sum", **BASE) == 3
        assert value(samples, f"{prefix}request_params_max_tokens_count", **BASE) == 2
        success = f"{prefix}request_success_total"
        assert value(samples, success, finished_reason="stop", **BASE) == 2
        assert value(samples, success, finished_reason="length", **BASE) == 1


async def test_gauges_come_from_the_engine(client, engine):
    engine.stats = msgspec.structs.replace(
        engine.stats,
        running=3,
        waiting=2,
        kv_blocks_used=32,
        kv_blocks_total=128,
        prefix_queries=100,
        prefix_hits=40,
        preemptions=1,
        steps=9,
    )
    samples = await scrape(client)
    for prefix in ("turret_", "vllm:"):
        assert value(samples, f"{prefix}num_requests_running", **BASE) == 3
        assert value(samples, f"{prefix}num_requests_waiting", **BASE) == 2
        assert value(samples, f"{prefix}kv_cache_usage_perc", **BASE) == 0.25
        assert value(samples, f"{prefix}prefix_cache_queries_total", **BASE) == 100
        assert value(samples, f"{prefix}prefix_cache_hits_total", **BASE) == 40
        assert value(samples, f"{prefix}num_preemptions_total", **BASE) == 1
    assert value(samples, "turret_engine_steps_total", **BASE) == 9
    assert value(samples, "turret_engine_up", **BASE) == 1
    assert value(samples, "vllm:cache_config_info", block_size="16", num_gpu_blocks="128") == 1


def lora_series(samples):
    return {
        labels: value for (name, labels), value in samples.items() if name.endswith("requests_info")
    }


async def test_residency_is_true_and_one_series_at_a_time(client, engine):
    for name in ("sql", "json"):
        await client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": name})
    await client.post("/v1/load_lora_adapter", {"lora_name": "sql2", "lora_path": "sql"})
    sql, json = engine.loaded
    engine.stats = msgspec.structs.replace(
        engine.stats, resident_adapters=[sql], waiting_adapters=[json]
    )
    before = time.time()
    ((labels, stamp),) = lora_series(await scrape(client)).items()
    assert dict(labels)["running_lora_adapters"] == "sql,sql2"
    assert dict(labels)["waiting_lora_adapters"] == "json"
    assert dict(labels)["max_lora"] == str(1 + (512 - 8) // 8)
    assert before <= stamp <= time.time()
    engine.stats = msgspec.structs.replace(engine.stats, resident_adapters=[], waiting_adapters=[])
    ((labels, _),) = lora_series(await scrape(client)).items()
    assert dict(labels)["running_lora_adapters"] == ""


async def test_models_are_told_apart_and_forgotten(client, engine):
    engine.text("one two")
    await client.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql"})
    for model in ("demo", "smollm2", "sql", "sql:0.5"):
        await client.chat(model=model)
    samples = await scrape(client)
    for model, tokens in (("demo", 6), ("sql", 3), ("composed", 3)):
        assert value(samples, "turret_model_generation_tokens_total", model=model) == tokens
    await client.post("/v1/unload_lora_adapter", {"lora_name": "sql"})
    assert not any(("model", "sql") in labels for _, labels in await scrape(client))


async def test_errors_are_counted_by_code(client, engine):
    await client.chat(temperature=9)
    await client.chat(model="nope")
    samples = await scrape(client)
    assert value(samples, "turret_errors_total", code="invalid_value") == 1
    assert value(samples, "turret_errors_total", code="model_not_found") == 1
    assert value(samples, "turret_http_responses_total", status="400") == 1


async def test_residency_lasts_while_nobody_asks(client, engine):
    for name in ("sql", "json"):
        await client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": name})
    sql, _ = engine.loaded
    engine.stats = msgspec.structs.replace(engine.stats, resident_adapters=[sql])
    for _ in range(2):
        samples = await scrape(client)
        assert value(samples, "turret_adapter_resident", adapter="sql") == 1
        assert value(samples, "turret_adapter_requests_running", adapter="sql") == 0
        assert ("turret_adapter_resident", (("adapter", "json"),)) not in samples  # never asked for
    engine.stats = msgspec.structs.replace(engine.stats, resident_adapters=[])
    assert value(await scrape(client), "turret_adapter_resident", adapter="sql") == 0
    await client.post("/v1/unload_lora_adapter", {"lora_name": "sql"})
    assert not any(("adapter", "sql") in labels for _, labels in await scrape(client))


async def test_a_name_that_left_during_its_last_request_is_forgotten(client, engine):
    engine.text("one")
    await client.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql"})
    engine.gate = asyncio.Event()
    asking = asyncio.create_task(client.chat(model="sql"))
    while not engine.requests:
        await asyncio.sleep(0)
    await client.post("/v1/unload_lora_adapter", {"lora_name": "sql"})
    engine.gate.set()
    assert (await asking).status == 200
    assert not any(("model", "sql") in labels for _, labels in await scrape(client))


async def test_ten_thousand_adapters_get_no_more_series_than_a_hundred(app, client, engine):
    service = app.state.service
    few = len(await scrape(client))
    for i in range(10_000):
        record = adapter_record(f"adapter-{i}")
        service.catalog.put(record)
        service.metrics.answer(record.name, "stop", 1)
        service.metrics.request(RequestRecord(id="r", label=record.name, prompt_tokens=1), 200)
    digests = [record.digest for record in service.catalog.records()]
    engine.stats = msgspec.structs.replace(engine.stats, resident_adapters=digests)
    samples = await scrape(client)
    assert len(samples) - few < 101 * 8 + 10
    name = "turret_model_prompt_tokens_total"
    assert sum(v for (n, _), v in samples.items() if n == name) == 10_000
    assert value(samples, name, model="other") == 9_900
    assert value(samples, "turret_adapter_resident", adapter="other") == 9_900


def adapter_record(name):
    return AdapterRecord(
        name=name,
        digest=name,
        path="",
        kind="lora",
        rank=8,
        targets=(),
        num_layers={"": 1},
        num_parameters=1,
        num_bytes=1,
        base_model=None,
        loaded_at=0.0,
    )


async def test_loads_are_counted_by_outcome(client, engine):
    await client.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql"})
    await client.post("/v1/load_lora_adapter", {"lora_name": "no", "lora_path": "no"})
    engine.load_error = EngineUnavailable("the engine is not available", "it has ended")
    await client.post("/v1/load_lora_adapter", {"lora_name": "json", "lora_path": "json"})
    samples = await scrape(client)
    for outcome in ("loaded", "refused", "failed"):
        assert value(samples, "turret_adapter_loads_total", outcome=outcome) == 1
    assert value(samples, "turret_adapter_load_seconds_count") == 3


async def test_steps_are_told_by_their_size(client, engine):
    sizes = [4, 0, 2, *[0] * 9, 1]
    engine.stats = msgspec.structs.replace(
        engine.stats, step_sizes=sizes, step_tokens=4 + 32 + 9000
    )
    samples = await scrape(client)
    name = "vllm:iteration_tokens_total"
    assert value(samples, f"{name}_bucket", le="1.0", **BASE) == 4
    assert value(samples, f"{name}_bucket", le="16.0", **BASE) == 6
    assert value(samples, f"{name}_bucket", le="+Inf", **BASE) == 7
    assert value(samples, f"{name}_sum", **BASE) == 9036


# What vLLM's own test expects of its page (tests/entrypoints: EXPECTED_METRICS_V1), without what is
# of LoRA and of multi-modal models. Its counters are exposed with "_total".
VLLM_GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
VLLM_COUNTERS = (
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "generation_tokens",
    "request_success",
)
VLLM_HISTOGRAMS = (
    "iteration_tokens_total",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_max_num_generation_tokens",
    "request_prefill_kv_computed_tokens",
    "request_params_n",
    "request_params_max_tokens",
)


async def test_dashboards_and_gateways_for_vllm_find_their_names(client, engine):
    engine.text("one two")
    await client.chat()
    names = {}
    for name, labels in await scrape(client):
        names.setdefault(name, set()).update(label for label, _ in labels)
    for name in VLLM_GAUGES:
        assert names[f"vllm:{name}"] == {"model_name"}
    for name in VLLM_COUNTERS:
        assert "model_name" in names[f"vllm:{name}_total"]
    for name in VLLM_HISTOGRAMS:
        assert names[f"vllm:{name}_bucket"] == {"model_name", "le"}
        assert {f"vllm:{name}_sum", f"vllm:{name}_count"} <= names.keys()
    # The contract of gateway-api-inference-extension and llm-d.
    assert names["vllm:cache_config_info"] == {"block_size", "num_gpu_blocks"}
    assert names["vllm:lora_requests_info"] == {
        "max_lora",
        "running_lora_adapters",
        "waiting_lora_adapters",
    }


async def test_the_page_before_the_engine_is_up(client, engine):
    engine.ready = None
    samples = await scrape(client)
    assert value(samples, "turret_engine_up", **BASE) == 0
