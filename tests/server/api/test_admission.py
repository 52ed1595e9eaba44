from __future__ import annotations

import asyncio

import msgspec


async def test_requests_beyond_the_queue_get_429(make_client, engine):
    client = make_client(max_waiting=2)
    engine.text("Hello")
    engine.gate = asyncio.Event()
    waiting = [asyncio.create_task(client.chat()) for _ in range(2)]
    await asyncio.sleep(0.02)
    refused = await client.chat()
    assert refused.status == 429
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert refused.json["error"]["code"] == "overloaded"
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["retry-after-ms"] == "1000"
    assert len(engine.requests) == 2
    engine.gate.set()
    assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200]
    assert (await client.chat()).status == 200


async def test_every_choice_takes_a_place(make_client, engine):
    client = make_client(max_waiting=4)
    engine.text("Hello")
    engine.gate = asyncio.Event()
    waiting = asyncio.create_task(client.chat(n=3))
    await asyncio.sleep(0.02)
    assert (await client.chat(n=2)).status == 429
    engine.gate.set()
    assert (await waiting).status == 200


async def test_a_request_that_could_never_enter_is_told_so(make_client):
    answer = await make_client(max_waiting=4).chat(n=5)
    assert (answer.status, answer.json["error"]["param"]) == (400, "n")


async def test_a_place_is_free_again_with_the_first_token(make_client, engine, tokenizer):
    client = make_client(max_waiting=1)
    engine.text("one two three four five six")
    engine.delay_s = 0.01
    running = asyncio.create_task(client.chat(stream=True))
    while not engine.requests:
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.03)
    assert (await client.chat(max_tokens=1)).status == 200
    assert (await running).status == 200


async def test_what_the_engine_reports_counts_too(make_client, engine):
    client = make_client(max_waiting=10)
    engine.stats = msgspec.structs.replace(engine.stats, waiting=10)
    assert (await client.chat()).status == 429


async def test_shedding_comes_before_any_work(make_client, engine, monkeypatch):
    client = make_client(max_waiting=1)
    engine.stats = msgspec.structs.replace(engine.stats, waiting=1)
    encoded = []
    monkeypatch.setattr(type(engine.tokenizer), "encode", lambda *a, **k: encoded.append(a))
    assert (await client.chat(model="unknown")).status == 429
    assert encoded == []


async def test_an_engine_that_is_not_up(client, engine):
    engine.ready = None
    for answer in (await client.chat(), await client.complete(stream=True)):
        assert answer.status == 503
        assert answer.json["error"]["code"] == "engine_unavailable"
        assert answer.headers["retry-after-ms"] == "2000"


async def test_a_server_that_drains(client, engine):
    engine.text("one two three")
    engine.delay_s = 0.01
    running = asyncio.create_task(client.chat())
    while not engine.requests:
        await asyncio.sleep(0.002)
    client.app.state.service.admission.draining = True
    assert (await client.chat()).status == 503
    assert (await client.get("/ready")).status == 503
    assert (await client.get("/health")).status == 200
    assert (await running).json["choices"][0]["message"]["content"] == "one two three"


async def test_failed_requests_leave_no_trace(client, engine):
    for fields in ({"model": "nope"}, {"logit_bias": {"999999": 1}}, {"guided_regex": "("}):
        assert (await client.chat(**fields)).status in (400, 404)
    assert client.app.state.service.admission.waiting == 0
