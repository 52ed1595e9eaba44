from __future__ import annotations

import asyncio

import msgspec
import pytest

from turret_server.api.admission import Admission, QueueFull
from turret_server.api.fairness import Party
from turret_server.errors import BadRequest, ServerOverloaded
from turret_server.tenancy.principal import Quotas

ANYBODY = Party("")


@pytest.fixture
def admission(engine, clock):
    """Eight may wait, for ten seconds."""
    return Admission(engine, 8, 10.0, clock)


def tenant(name, weight=1.0, **quotas):
    return Party(name, weight, Quotas(**quotas), has_peers=True)


def serve(admission, clock, *, per_s, tokens):
    """A while in which the queue moves at this speed."""
    for _ in range(20):
        ticket = admission.enter(ANYBODY, 1, tokens)
        clock.now += 1 / per_s
        ticket.started()


async def test_requests_beyond_the_queue_get_503(make_client, engine):
    client = make_client(max_waiting=2)
    engine.text("Hello")
    engine.gate = asyncio.Event()
    waiting = [asyncio.create_task(client.chat()) for _ in range(2)]
    await asyncio.sleep(0.02)
    refused = await client.chat()
    assert refused.status == 503
    assert refused.json["error"]["type"] == "service_unavailable"
    assert refused.json["error"]["code"] == "server_overloaded"
    assert refused.headers["retry-after"] in ("1", "2")
    assert 500 <= int(refused.headers["retry-after-ms"]) <= 1500
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
    assert (await client.chat(n=2)).status == 503
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
    assert (await client.chat()).status == 503


async def test_shedding_comes_before_any_work(make_client, engine, monkeypatch):
    client = make_client(max_waiting=1)
    engine.stats = msgspec.structs.replace(engine.stats, waiting=1)
    encoded = []
    monkeypatch.setattr(type(engine.tokenizer), "encode", lambda *a, **k: encoded.append(a))
    assert (await client.chat(model="unknown")).status == 503
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


async def test_the_engine_hears_how_long_a_request_may_wait(make_client, engine):
    await make_client(max_wait_s=7.0).chat(max_tokens=1)
    assert engine.requests[0].queue_s == 7.0


async def test_one_that_did_not_start_in_time_hears_when_to_come_again(client, engine):
    engine.fail_after, engine.failure = 0, ServerOverloaded("the server is overloaded")
    refused = await client.chat()
    assert refused.status == 503
    assert 500 <= int(refused.headers["retry-after-ms"]) <= 1500


async def test_a_tenants_shares_and_lanes_reach_the_engine(make_client, engine):
    client = make_client(adapter_shares={"sql": 2.5})
    await client.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql"})
    for model in ("sql", "demo"):
        await client.complete(model=model, max_tokens=1)
    lanes = [(request.lane, request.lane_weight) for request in engine.requests]
    assert lanes == [("sql", 2.5), ("demo", 1.0)]


def test_one_tenant_leaves_others_as_many_places_as_it_takes(admission):
    noisy, quiet = tenant("noisy"), tenant("quiet")
    for _ in range(4):
        admission.enter(noisy, 1, 10)
    with pytest.raises(QueueFull, match="'noisy' is full"):
        admission.enter(noisy, 1, 10)
    admission.enter(quiet, 2, 10)
    with pytest.raises(QueueFull):
        admission.enter(quiet, 1, 10)
    admission.enter(tenant("third"), 1, 10)


def test_who_is_alone_has_the_whole_queue(admission):
    for _ in range(8):
        admission.enter(ANYBODY, 1, 10)
    with pytest.raises(ServerOverloaded, match="8 answers wait"):
        admission.enter(ANYBODY, 1, 10)


def test_quotas_of_what_waits(admission):
    few = tenant("few", queued_requests=2)
    first = admission.enter(few, 2, 10)
    with pytest.raises(QueueFull, match="2 of its answers wait"):
        admission.enter(few, 1, 10)
    first.started()
    admission.enter(few, 1, 10)
    with pytest.raises(BadRequest):
        admission.enter(few, 3, 10)
    short = tenant("short", queued_tokens=100)
    waits = admission.enter(short, 1, 500)  # nothing of it waited yet
    with pytest.raises(QueueFull, match="some 500 tokens"):
        admission.enter(short, 1, 1)
    waits.started()
    admission.enter(short, 1, 99)


def test_a_wait_that_is_too_long_is_refused_at_once(engine, clock):
    admission = Admission(engine, 100, 10.0, clock)
    serve(admission, clock, per_s=2.0, tokens=100)
    tickets = [admission.enter(ANYBODY, 7, 700)]
    with pytest.raises(ServerOverloaded, match=r"would wait some 11 s; 10 may pass") as caught:
        admission.enter(ANYBODY, 15, 1500)
    # Half of 700 tokens at 200 a second, and half of that earlier or later.
    assert 0.87 < caught.value.retry_after_s < 2.63
    tickets.append(admission.enter(ANYBODY, 12, 1200))
    for _ in range(7):
        tickets[0].started()
    admission.enter(ANYBODY, 1, 100)


def test_who_waits_for_rows_of_its_own_keeps_nobody_else_waiting(engine, clock):
    """One row is all it may have: that its queue is slow says nothing of the others'."""
    admission = Admission(engine, 200, 10.0, clock)
    serve(admission, clock, per_s=2.0, tokens=100)
    capped = tenant("capped", running_requests=1)
    tickets = [admission.enter(capped, 1, 100) for _ in range(40)]
    for ticket in tickets[:30]:
        clock.now += 60
        ticket.started()
    assert admission.wait_s(capped, 1, 100) == 0
    serve(admission, clock, per_s=2.0, tokens=100)
    admission.enter(tenant("quiet"), 19, 1900)
    with pytest.raises(QueueFull, match="would wait some 10 s"):
        admission.enter(tenant("quiet"), 2, 200)


def test_a_tenant_waits_for_its_own_turns_alone(engine, clock):
    admission = Admission(engine, 100, 10.0, clock)
    serve(admission, clock, per_s=2.0, tokens=100)
    admission.enter(tenant("noisy"), 19, 1900)
    with pytest.raises(QueueFull, match="would wait some 15 s"):
        admission.enter(tenant("noisy"), 11, 1100)
    admission.enter(tenant("quiet"), 9, 900)  # in turns it is done when 1800 are
    with pytest.raises(QueueFull, match="would wait some 15 s"):
        admission.enter(tenant("light", weight=0.5), 6, 600)
    admission.enter(tenant("heavy", weight=4), 10, 1000)


@pytest.mark.parametrize(("count", "tokens"), [(1, 10**6), (60, 1)])
def test_another_mixture_is_not_held_against_anybody(engine, clock, count, tokens):
    """One long prompt among short ones, or many short ones: each may well be served in time."""
    admission = Admission(engine, 100, 10.0, clock)
    serve(admission, clock, per_s=2.0, tokens=100)
    admission.enter(ANYBODY, 1, 1)
    admission.enter(ANYBODY, count, tokens)


def test_an_estimate_is_corrected_when_the_prompt_is_counted(engine, clock):
    admission = Admission(engine, 100, 10.0, clock)
    serve(admission, clock, per_s=2.0, tokens=100)
    ticket = admission.enter(ANYBODY, 19, 1900)
    ticket.weigh(100)
    admission.enter(ANYBODY, 19, 1800)


@pytest.mark.parametrize("idle_s", [0.0, 300.0])
def test_what_is_not_known_is_not_held_against_anybody(admission, clock, idle_s):
    """At the start, and when what was seen is long ago."""
    if idle_s:
        serve(admission, clock, per_s=0.5, tokens=100)
        clock.now += idle_s
    for _ in range(8):
        admission.enter(ANYBODY, 1, 10**6)


def test_nothing_is_left_of_what_has_gone(admission):
    for count in (1, 3):
        with admission.enter(tenant("a"), count, 0.1) as ticket:
            ticket.weigh(7)
            ticket.started()
    ticket.weigh(9)
    assert (admission.waiting, admission._tokens, admission._parts) == (0, 0, {})
