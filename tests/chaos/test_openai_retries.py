"""OpenAI's client, which is told when to ask again, and does."""

from __future__ import annotations

import asyncio

import pytest
from openai import AsyncOpenAI

pytestmark = pytest.mark.e2e


async def test_openais_client_gets_over_a_restart(server, http):
    """503 with Retry-After: it waits, as it is told, and asks again by itself."""
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=10, timeout=60
    ) as client:
        (engine,) = server.engines()
        engine.kill()
        refused = await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        answer = await client.completions.create(
            model="smollm2-135m-instruct", prompt="One, two,", max_tokens=3
        )
    assert answer.choices[0].text


async def test_openais_client_gets_over_a_full_queue(
    server, http, completion, open_stream, wait_until
):
    """429 with Retry-After, until those who were before it are done."""
    waiting = "turret_num_requests_waiting"
    async with (
        AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=60, timeout=60
        ) as client,
        open_stream(completion(n=32, max_tokens=100)) as events,
    ):
        running = set()
        while len(running) < 32:
            running.add((await anext(events))["choices"][0]["index"])
        behind = asyncio.create_task(
            http.post("/v1/completions", json=completion(n=32, max_tokens=10))
        )
        await asyncio.to_thread(
            wait_until, lambda: server.metrics()[waiting] >= 32, 20, "the queue is full"
        )
        refused = await http.post("/v1/completions", json=completion(max_tokens=1))
        assert refused.status_code == 429
        asking = asyncio.create_task(
            client.completions.create(
                model="smollm2-135m-instruct", prompt="One, two,", max_tokens=3
            )
        )
        async for _ in events:
            pass
        assert (await behind).status_code == 200
        assert (await asking).choices[0].text
