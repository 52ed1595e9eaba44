"""More than the server takes: refused at once, and politely. Deadlines hold meanwhile."""

from __future__ import annotations

import asyncio
import time

import httpx2
import pytest
from openai import AsyncOpenAI

pytestmark = pytest.mark.e2e


@pytest.fixture
async def full(completion, open_stream):
    """A stream of 32 answers that fill the batch."""
    async with open_stream(completion(n=32)) as events:
        running = set()
        while len(running) < 32:
            running.add((await anext(events))["choices"][0]["index"])
        yield


async def test_a_full_queue_turns_requests_away(server, http, full, completion, wait_until):
    waiting = asyncio.create_task(http.post("/v1/completions", json=completion(n=32)))
    await asyncio.to_thread(
        wait_until, lambda: server.metrics()["turret_num_requests_waiting"] == 32, 10, "all wait"
    )
    response = await http.post("/v1/completions", json=completion())
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "server_overloaded"
    assert int(response.headers["retry-after"]) >= 1
    assert int(response.headers["retry-after-ms"]) > 0
    # Probes and the rest answer all the same.
    assert (await http.get("/ready")).status_code == 200
    assert (await http.get("/v1/models")).status_code == 200
    waiting.cancel()


async def test_a_request_for_more_than_the_queue_holds_says_so(http, completion):
    response = await http.post("/v1/completions", json=completion(n=33))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"


async def test_openais_client_gets_through_a_full_queue_by_itself(server, http):
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=100, timeout=60
    ) as client:
        prompts = [f"{i} and" for i in range(100)]  # 32 run, 32 wait, the rest is turned away
        asks = [
            client.completions.create(model="smollm2-135m-instruct", prompt=prompt, max_tokens=8)
            for prompt in prompts
        ]
        answers = await asyncio.gather(*asks)
    assert all(answer.usage.completion_tokens for answer in answers)
    assert server.metrics()["turret_errors_total"] > 0


async def test_what_does_not_start_in_time_is_turned_away_then(serve, completion):
    flags = ("--max-running=1", "--max-wait-s=0.5", "--kv-cache-gib=0.5")
    with serve(*flags) as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
            running = asyncio.create_task(http.post("/v1/completions", json=completion()))
            while not server.metrics()["turret_num_requests_running"]:
                await asyncio.sleep(0.05)
            began = time.monotonic()
            late = await http.post("/v1/completions", json=completion())
            waited_s = time.monotonic() - began
            running.cancel()
    assert (late.status_code, late.json()["error"]["code"]) == (503, "server_overloaded")
    assert int(late.headers["retry-after-ms"]) > 0
    assert 0.5 <= waited_s < 5  # the request before it takes longer, also on an idle machine


async def test_a_deadline_passes_in_the_queue(http, full, completion):
    response = await http.post("/v1/completions", json=completion(timeout_s=0.2))
    assert response.status_code == 504
    error = response.json()["error"]
    assert error["code"] == "deadline_exceeded"
    assert error["param"] == "timeout_s"


async def test_a_deadline_passes_in_the_middle_of_a_stream(completion, open_stream):
    async with open_stream(completion(timeout_s=1.0)) as events:
        *tokens, error, done = [event async for event in events]
    assert tokens
    assert error["error"]["code"] == "deadline_exceeded"
    assert done == "[DONE]"


async def test_a_deadline_in_time_changes_nothing(http, completion):
    response = await http.post("/v1/completions", json=completion(timeout_s=60, max_tokens=2))
    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] == 2
