from __future__ import annotations

import time

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families


async def scrape(client):
    """{(name, labels): value} of everything on the page."""
    page = (await client.get("/metrics")).body.decode()
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


async def test_the_page_before_the_engine_is_up(client, engine):
    engine.ready = None
    samples = await scrape(client)
    assert value(samples, "turret_engine_up", **BASE) == 0
