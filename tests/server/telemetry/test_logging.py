"""What the log says, and what it never says."""

from __future__ import annotations

import io
import json
import logging

import msgspec
import pytest

from turret_server.errors import TurretError
from turret_server.telemetry.logging import JsonFormatter, configure_logging
from turret_server.tenancy.principal import new_key
from turret_server.tenancy.service import Tenancy, static_keys

SECRET = "zebra-crossing-7431"
KEY = "tk-8f1b-secret-9c2d"


@pytest.fixture
def engine(engine):
    engine.text(f"answer {SECRET}")
    return engine


@pytest.fixture
def log(monkeypatch):
    """Everything that any logger says at any level, as the server would write it."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    configure_logging("debug")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)
    for name in ("turret", "turret_server", "turret_adapters", "uvicorn"):
        ours = logging.getLogger(name)
        ours.handlers.clear()
        ours.setLevel(logging.NOTSET)
        ours.propagate = True


def lines(log):
    """Those of the server, which speaks of requests; asyncio's own are of its start."""
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in found if not line["event"].startswith("Using selector")]


@pytest.fixture
def client(make_client):
    return make_client(tenancy=Tenancy(static_keys([KEY], ["tk-root"])))


async def send(client, path, body, key=KEY, **headers):
    return await client.post(path, body, {"authorization": f"Bearer {key}", **headers})


async def test_a_request_is_one_line_with_who_what_and_how_long(client, log):
    await send(client, "/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql"}, "tk-root")
    answer = await send(
        client,
        "/v1/completions",
        {"prompt": "Hi", "model": "sql", "max_tokens": 2},
        **{"x-request-id": "mine-1"},
    )
    assert answer.status == 200
    line = lines(log)[-1]
    assert line["tenant"].startswith("key-")
    assert line["duration_ms"] > line["first_token_ms"] > 0
    expected = {
        "level": "info",
        "event": "request",
        "request_id": "mine-1",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "model": "sql",
        "adapter": "sql",
        "completion_tokens": 2,
        "finish_reasons": ["length"],
    }
    assert expected.items() <= line.items()


PROMPTS = {
    "chat": {"messages": [{"role": "user", "content": SECRET}]},
    "stream": {"messages": [{"role": "user", "content": SECRET}], "stream": True},
    "unknown field": {"messages": [{"role": "user", "content": "Hi"}], SECRET: SECRET},
    "wrong type": {"messages": SECRET},
    "wrong role": {"messages": [{"role": SECRET, "content": SECRET}]},
    "unknown model": {"messages": [{"role": "user", "content": "Hi"}], "model": SECRET},
    "bad schema": {
        "messages": [{"role": "user", "content": SECRET}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": SECRET, "schema": {"type": SECRET}},
        },
    },
    "bad regex": {
        "messages": [{"role": "user", "content": "a"}],
        "structured_outputs": {"regex": f"({SECRET}"},
    },
    "stop": {"messages": [{"role": "user", "content": "a"}], "stop": [SECRET], "user": SECRET},
    "tool": {
        "messages": [{"role": "user", "content": "a"}],
        "tools": [{"type": "function", "function": {"name": SECRET, "parameters": {"type": 1}}}],
    },
    "document": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "document", "document": {"data": f"{{{SECRET}"}}],
            }
        ]
    },
    "no json": f'{{"messages": "{SECRET}'.encode(),
}


@pytest.mark.parametrize("name", PROMPTS)
async def test_no_word_of_a_prompt_or_an_answer_is_logged(client, log, name):
    await send(client, "/v1/chat/completions", PROMPTS[name], cookie=SECRET, **{"x-a": SECRET})
    assert lines(log)
    assert SECRET not in log.getvalue()
    assert KEY not in log.getvalue()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(
    "failing", [lambda: RuntimeError(f"cannot {SECRET!r}"), lambda: TurretError(SECRET, SECRET)]
)
async def test_what_fails_inside_is_told_without_its_words(
    client, engine, log, failing, after, stream
):
    failure = failing()
    engine.fail_after, engine.failure = after, failure
    failure.__cause__ = ValueError(SECRET)
    body = {"prompt": SECRET, "max_tokens": 4, "stream": stream}
    await send(client, "/v1/completions", body)
    assert SECRET not in log.getvalue()
    if isinstance(failure, RuntimeError):
        (line,) = (line for line in lines(log) if line["event"] == "unhandled_exception")
        assert line["error"] == "RuntimeError"
        assert "ValueError" in line["traceback"]
        assert any("conftest.py" in place for place in line["traceback"]), line


@pytest.mark.parametrize("key", ["tk-wrong-5555", "", "tk-\u00e9"])
async def test_no_key_is_logged_whether_it_is_known_or_not(client, log, key):
    await send(client, "/v1/completions", {"prompt": "Hi"}, key)
    await client.post("/v1/completions", {"prompt": "Hi"}, {"x-api-key": KEY})
    await send(client, f"/v1/models?key={KEY}", b"", KEY)
    assert len(lines(log)) == 3
    assert not any(secret in log.getvalue() for secret in (KEY, "tk-wrong", "tk-\u00e9") if secret)


async def test_names_and_headers_cannot_forge_a_line(client, log):
    forged = 'x"}\n{"event": "forged"}\r\u2028\x1b[31m'
    await send(client, "/v1/completions", {"prompt": "Hi", "model": forged})
    await client.post(f"/v1/{forged}", b"", {"authorization": f"Bearer {KEY}"}, method="GET")
    await client.post("/v1/completions", {"prompt": "a"}, {"x-request-id": "a b"})
    found = lines(log)
    assert len(found) == 3
    assert {line["event"] for line in found} == {"request"}
    assert found[2]["request_id"] != "a b"
    text = log.getvalue()
    assert "\x1b" not in text
    assert "\u2028" not in text


def test_every_level_of_the_servers_own_loggers_is_json(log):
    for name in ("turret.link", "turret_server.tenancy.ledger", "uvicorn.error"):
        logging.getLogger(name).error("it failed: %s", "a\nb")
    found = lines(log)
    assert [line["event"] for line in found] == ["it failed: a\nb"] * 3
    assert msgspec.json.encode("a\nb") in log.getvalue().encode().replace(b"it failed: ", b"")


async def test_a_whole_key_in_a_path_is_cut_to_its_beginning(client, log):
    key = new_key()
    await send(client, f"/v1/admin/keys/{key}/rotate", {}, "tk-root")
    assert key[12:] not in log.getvalue()
    (line,) = (line for line in lines(log) if line["event"] == "request")
    assert line["path"] == f"/v1/admin/keys/{key[:11]}…/rotate"
