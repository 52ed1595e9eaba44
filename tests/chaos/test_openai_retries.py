"""OpenAI's client meets a restart: it is told when to ask again, and does."""

from __future__ import annotations

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
