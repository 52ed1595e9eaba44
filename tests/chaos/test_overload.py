"""More than the server takes: refused at once, and politely. Deadlines hold meanwhile."""

from __future__ import annotations

import asyncio

import pytest

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
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "overloaded"
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
