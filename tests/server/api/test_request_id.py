from __future__ import annotations

import json
import logging

import pytest

from turret_server.telemetry.logging import JsonFormatter


async def test_a_clients_id_is_echoed(client):
    for path in ("/health", "/v1/nothing"):
        answer = await client.get(path, {"x-request-id": "req-42"})
        assert answer.headers["x-request-id"] == "req-42"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a\tb"])
async def test_an_unfit_id_is_replaced(client, given):
    answer = await client.get("/health", {"x-request-id": given})
    assert answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 32


async def test_an_unexpected_error_is_answered_with_the_id(client, engine, caplog):
    engine.fail_after, engine.failure = 0, ZeroDivisionError("secret")
    answer = await client.chat()
    assert answer.status == 500
    assert answer.json["error"]["type"] == "server_error"
    assert answer.headers["x-request-id"] in answer.json["error"]["message"]
    assert b"secret" not in answer.body
    assert "secret" not in caplog.text
    (logged,) = [r.fields for r in caplog.records if r.getMessage() == "unhandled_exception"]
    assert logged["error"] == "ZeroDivisionError"
    assert any("generation.py" in place for place in logged["traceback"])


def fields_of(caplog):
    return [r.fields for r in caplog.records if r.getMessage() == "request"]


async def test_one_line_per_request_without_its_text(client, engine, caplog):
    caplog.set_level(logging.INFO, "turret")
    engine.text("the secret answer")
    await client.chat("a secret question", model="demo", n=2, stream=True)
    await client.chat("a secret question", temperature="secret")
    await client.complete("a secret question", model="secret-model-name")
    good, bad, unknown = fields_of(caplog)
    assert good["status"] == 200
    assert good["path"] == "/v1/chat/completions"
    assert (good["model"], good["choices"], good["stream"]) == ("demo", 2, True)
    assert good["completion_tokens"] == 2 * 4
    assert good["prompt_tokens"] > 0
    assert good["finish_reasons"] == ["stop"]
    assert good["first_token_ms"] <= good["duration_ms"]
    assert (bad["status"], bad["error"], bad["code"]) == (400, "BadRequest", "invalid_value")
    assert (unknown["status"], unknown["code"]) == (404, "model_not_found")
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert all(json.loads(line) for line in lines)
    assert not any("secret" in line or "\n" in line for line in lines)


async def test_probes_are_quiet(client, caplog):
    caplog.set_level(logging.INFO, "turret")
    for path in ("/health", "/metrics", "/ready"):
        await client.get(path)
    assert fields_of(caplog) == []


async def test_a_forged_line_stays_one_line(client, caplog):
    caplog.set_level(logging.INFO, "turret")
    await client.get('/v1/x\n{"event": "forged"}')
    (record,) = [r for r in caplog.records if r.getMessage() == "request"]
    assert "\n" not in JsonFormatter().format(record)
