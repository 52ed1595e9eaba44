from __future__ import annotations

import turret_server


async def test_a_server_that_serves(client):
    assert (await client.get("/health")).json == {"status": "ok"}
    assert (await client.get("/ping")).json == {"status": "ok"}
    assert (await client.get("/ready")).json == {"status": "ready"}
    assert (await client.get("/version")).json == {"version": turret_server.__version__}


async def test_a_server_whose_engine_is_down(client, engine):
    engine.ready = None
    for path in ("/health", "/ping", "/ready"):
        answer = await client.get(path)
        assert answer.status == 503
        assert "retry-after" in answer.headers
    for path in ("/version", "/metrics", "/v1/models", "/tokenizer_info"):
        assert (await client.get(path)).status == 200
