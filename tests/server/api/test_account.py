"""What requests cost their tenant: quotas, the ledger, and what each way of ending does."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest
from sqlalchemy import select
from tests.server.api.documents.conftest import InlineWorkers, page_of

from turret_server.errors import EngineUnavailable
from turret_server.scorer.scorer import Scorer
from turret_server.scorer.text import Row
from turret_server.tenancy import journal as journal_module
from turret_server.tenancy import schema
from turret_server.tenancy.principal import Quotas
from turret_server.tenancy.service import Tenancy

BODY = {"prompt": "One two three", "max_tokens": 5}


@pytest.fixture
def serve(make_client, database, admin, tmp_path):
    """Make a server with one tenant of these quotas; the client and its headers."""

    def serve(scorers=None, **quotas):
        admin.create_tenant("acme", quotas=Quotas(**quotas))
        headers = {"authorization": f"Bearer {admin.create_key('acme')}"}
        tenancy = Tenancy({}, database, tmp_path / "usage")
        return make_client(tenancy=tenancy, scorers=scorers), headers, tenancy

    return serve


async def rows(tenancy, admin):
    """The ledger, once all of it is there."""
    await tenancy.ledger.close()
    return admin.usage()


async def test_the_ledger_counts_what_the_response_says(serve, admin):
    client, headers, tenancy = serve()
    answer = await client.post("/v1/completions", BODY, headers)
    usage = answer.json["usage"]
    (row,) = await rows(tenancy, admin)
    assert row["requests"] == 1
    assert row["tenant"] == "acme"
    assert row["model"] == answer.json["model"]
    assert headers["authorization"].startswith(f"Bearer {row['key']}")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["prompt_tokens"], 5)
    assert row["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_route_is_counted_streamed_or_not(serve, admin, path, stream):
    client, headers, tenancy = serve()
    body = dict(BODY) if path == "/v1/completions" else {"max_tokens": 5}
    body |= {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {}
    await client.post(path, {**body, "stream": stream, "n": 2}, headers)
    (row,) = await rows(tenancy, admin)
    assert (row["requests"], row["completion_tokens"]) == (1, 10)


class Scorable:
    """A scorer that finds all equal: three tokens each."""

    def rows(self, instruction, answers):
        return [Row([1, 2, 3]) for _ in answers]

    async def score(self, rows):
        return [0.0] * len(rows)


async def test_reranking_costs_what_was_drawn_and_scoring_what_was_read(serve, admin):
    scorer = Scorer("judge", Scorable(), Scorable(), 1, 16)
    client, headers, tenancy = serve(scorers={"judge": scorer}, tokens_per_minute=40)
    rerank = {"scorer": "judge", "candidates": 4}
    answer = await client.post("/v1/completions", {**BODY, "rerank": rerank}, headers)
    assert answer.json["usage"]["completion_tokens"] == 20
    documents = {"model": "judge", "query": "x", "documents": ["a", "b"]}
    assert (await client.post("/v1/rerank", documents, headers)).status == 200
    refused = await client.post("/v1/rerank", {**documents, "documents": ["a"] * 14}, headers)
    assert (refused.status, refused.json["error"]["param"]) == (400, "documents")
    refused = await client.post("/v1/rerank", {**documents, "documents": ["a"] * 12}, headers)
    assert refused.status == 429
    counted = {row["model"]: row for row in await rows(tenancy, admin)}
    assert counted["demo"]["completion_tokens"] == 20
    assert counted["judge"]["prompt_tokens"] == 6


async def test_pages_that_are_laid_out_are_counted_under_no_model(serve, admin, monkeypatch):
    monkeypatch.setattr("turret_server.api.documents.reader.DocumentWorkers", InlineWorkers)
    client, headers, tenancy = serve()
    pages = {"pages": [page_of([["a", "b"]]), page_of([["c"]], 2)]}
    assert (await client.post("/v1/layout", {"document": {"data": pages}}, headers)).status == 200
    (row,) = await rows(tenancy, admin)
    assert (row["model"], row["requests"], row["pages"], row["prompt_tokens"]) == ("", 1, 2, 0)
    assert row["interrupted"] == 0


async def test_a_request_is_on_the_disk_before_its_first_byte(serve, engine):
    client, headers, tenancy = serve()
    engine.gate = asyncio.Event()
    task = asyncio.create_task(client.post("/v1/completions", BODY, headers))
    async with asyncio.timeout(10):
        while not engine.requests:
            await asyncio.sleep(0.01)
    assert tenancy.ledger._journal.lines == 1
    engine.gate.set()
    assert (await task).status == 200


async def test_a_full_disk_refuses_and_nothing_reaches_the_engine(serve, engine, monkeypatch):
    client, headers, _ = serve()

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal_module.os, "fdatasync", full)
    answer = await client.post("/v1/completions", BODY, headers)
    assert (answer.status, answer.json["error"]["code"]) == (503, "usage_not_recorded")
    assert "retry-after" in answer.headers
    assert engine.requests == []


async def test_what_a_full_disk_refuses_takes_no_tokens(serve, monkeypatch):
    client, headers, _ = serve(tokens_per_minute=60)

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "fdatasync", full)
        answer = await client.post("/v1/completions", BODY, headers)
    assert answer.status == 503
    assert answer.headers["x-ratelimit-remaining-tokens"] == "60"


async def test_a_client_that_leaves_pays_for_what_it_got(serve, admin, engine):
    client, headers, tenancy = serve()
    engine.gate, leave = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(client.post("/v1/completions", BODY, headers, leave=leave))
    async with asyncio.timeout(10):
        while not engine.requests:
            await asyncio.sleep(0.01)
    leave.set()
    await task
    (row,) = await rows(tenancy, admin)
    assert (row["requests"], row["completion_tokens"], row["interrupted"]) == (1, 0, 0)
    assert tenancy.meters.of(tenancy.tenants["acme"]).running == 0


async def test_an_engine_that_dies_is_counted_too(serve, admin, engine):
    client, headers, tenancy = serve()
    engine.fail_after, engine.failure = 2, EngineUnavailable("gone", "it died", "again")
    assert (await client.post("/v1/completions", BODY, headers)).status == 503
    (row,) = await rows(tenancy, admin)
    assert (row["requests"], row["completion_tokens"]) == (1, 2)


class Dead:
    """A scorer whose process has ended."""

    async def score(self, rows):
        raise EngineUnavailable("gone", "it died", "again")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", BODY),
        ("/v1/completions", {**BODY, "stream": True}),
        ("/v1/rerank", {"model": "judge", "query": "x", "documents": ["a", "b"]}),
    ],
    ids=["whole", "stream", "rerank"],
)
async def test_what_failed_is_an_error_in_the_ledger(serve, database, engine, path, body):
    """It was written down, as done or left, before the client was told of the error."""
    client, headers, tenancy = serve(scorers={"judge": Scorer("judge", Scorable(), Dead(), 1, 16)})
    engine.fail_after, engine.failure = 0, EngineUnavailable("gone", "it died", "again")
    assert (await client.post(path, body, headers)).status == 503
    await tenancy.ledger.close()
    with database.begin() as connection:
        assert list(connection.scalars(select(schema.requests.c.status))) == ["error"]


async def test_a_refused_request_is_not_counted(serve, admin):
    client, headers, tenancy = serve()
    for body in ({**BODY, "model": "nobody"}, {**BODY, "max_tokens": 10**6}, {"prompt": []}):
        assert (await client.post("/v1/completions", body, headers)).status in (400, 404)
    assert await rows(tenancy, admin) == []


async def test_requests_per_minute_end_in_429_with_openais_headers(serve, engine):
    client, headers, _ = serve(requests_per_minute=2)
    first = await client.post("/v1/completions", BODY, headers)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    await client.post("/v1/completions", BODY, headers)
    refused = await client.post("/v1/completions", BODY, headers)
    assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert 25 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(engine.requests) == 2


async def test_tokens_are_reserved_and_what_was_not_used_comes_back(serve, engine):
    client, headers, _ = serve(tokens_per_minute=1000)
    engine.text("Yes")
    body = {**BODY, "max_tokens": 900}
    streamed = await client.post("/v1/completions", {**body, "stream": True}, headers)
    # Its headers went out while all that it might use was taken.
    assert int(streamed.headers["x-ratelimit-remaining-tokens"]) < 100
    answer = await client.post("/v1/completions", body, headers)
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 950
    again = await client.post("/v1/completions", {**BODY, "max_tokens": 900}, headers)
    assert again.status == 200
    never = await client.post("/v1/completions", {**BODY, "max_tokens": 1000}, headers)
    assert (never.status, never.json["error"]["param"]) == (400, "max_tokens")


async def test_a_request_that_is_refused_for_its_tokens_takes_none(serve, engine):
    client, headers, tenancy = serve(tokens_per_minute=100)
    engine.gate = asyncio.Event()
    running = asyncio.create_task(
        client.post("/v1/completions", {**BODY, "max_tokens": 80}, headers)
    )
    async with asyncio.timeout(10):
        while not engine.requests:
            await asyncio.sleep(0.01)
    for _ in range(3):
        refused = await client.post("/v1/completions", {**BODY, "max_tokens": 80}, headers)
        assert refused.status == 429
    engine.gate.set()
    done = (await running).json["usage"]["total_tokens"]
    meter = tenancy.meters.of(tenancy.tenants["acme"])
    assert int(meter.headers()["x-ratelimit-remaining-tokens"]) >= 100 - done
    assert meter.running == 0


async def test_requests_at_once(serve, engine):
    client, headers, _ = serve(concurrent_requests=1)
    engine.gate = asyncio.Event()
    running = asyncio.create_task(client.post("/v1/completions", BODY, headers))
    async with asyncio.timeout(10):
        while not engine.requests:
            await asyncio.sleep(0.01)
    assert (await client.post("/v1/completions", BODY, headers)).status == 429
    engine.gate.set()
    assert (await running).status == 200
    assert (await client.post("/v1/completions", BODY, headers)).status == 200


async def test_a_tenant_sees_its_own_usage(serve, admin, tmp_path):
    client, headers, tenancy = serve()
    await client.post("/v1/completions", BODY, headers)
    await asyncio.gather(*tenancy.ledger._ending)
    assert await tenancy.ledger._carry()
    (row,) = (await client.get("/v1/usage", headers)).json["data"]
    assert row["tenant"] == "acme"
    admin.create_tenant("other")
    other = {"authorization": f"Bearer {admin.create_key('other')}"}
    await tenancy.refresh()
    assert (await client.get("/v1/usage", other)).json["data"] == []


async def test_keys_of_one_tenant_share_its_quotas_and_prefixes(serve, admin, engine):
    client, headers, tenancy = serve(requests_per_minute=2)
    second = {"authorization": f"Bearer {admin.create_key('acme')}"}
    await tenancy.refresh()
    assert (await client.post("/v1/completions", BODY, headers)).status == 200
    assert (await client.post("/v1/completions", BODY, second)).status == 200
    assert (await client.post("/v1/completions", BODY, second)).status == 429
    assert engine.requests[0].cache_namespace == engine.requests[1].cache_namespace
    assert engine.requests[0].fairness_key == "acme"


async def test_the_engine_knows_the_tenants_weight_and_rows(serve, admin, engine):
    client, headers, tenancy = serve(running_requests=2)
    admin.change_tenant("acme", weight=3.0)
    await tenancy.refresh()
    await client.post("/v1/completions", BODY, headers)
    assert (engine.requests[0].fairness_weight, engine.requests[0].fairness_rows) == (3.0, 2)


async def test_members_of_a_fusion_cost_their_tokens(serve, admin):
    """The response counts the request; quotas and the ledger what it took."""
    client, headers, tenancy = serve(tokens_per_minute=1000)
    body = {"prompt": [1, 2, 3], "max_tokens": 5, "n": 2}
    fusion = {"method": "guidance", "negative_prompt": [7, 8]}
    answer = await client.post("/v1/completions", {**body, "fusion": fusion}, headers)
    usage = answer.json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 10)
    assert 970 <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= 980  # 25 are taken
    (row,) = await rows(tenancy, admin)
    assert (row["prompt_tokens"], row["completion_tokens"], row["member_tokens"]) == (3, 10, 12)


async def test_members_are_reserved(serve):
    client, headers, _ = serve(tokens_per_minute=100)
    body = {"prompt": [1, 2, 3], "max_tokens": 60}
    fusion = {"method": "guidance", "negative_prompt": [7, 8]}
    answer = await client.post("/v1/completions", {**body, "fusion": fusion}, headers)
    assert answer.status == 400
    assert "asks for 125 tokens" in answer.json["error"]["message"]
    assert (await client.post("/v1/completions", body, headers)).status == 200


@pytest.mark.parametrize(
    ("quota", "spent"), [("tokens_per_minute", "tokens"), ("pages_per_minute", "pages")]
)
async def test_no_document_is_read_for_a_tenant_that_has_no_more(serve, monkeypatch, quota, spent):
    client, headers, tenancy = serve(**{quota: 100})

    async def read(*_):
        raise AssertionError

    monkeypatch.setattr(client.app.state.service.documents, "read", read)
    with tenancy.meters.of(tenancy.tenants["acme"]).enter(tenancy.tenants["acme"]) as reservation:
        reservation.take(**{spent: 100})
        part = {"type": "document", "document": {"data": {"words": []}}}
        body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 5}
        refused = await client.post("/v1/chat/completions", body, headers)
    assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")


async def test_a_tenant_finds_room_beside_one_that_floods(serve, admin, engine):
    client, headers, tenancy = serve()
    client.app.state.service.admission._max_waiting = 8
    admin.create_tenant("other", quotas=Quotas(queued_requests=1))
    other = {"authorization": f"Bearer {admin.create_key('other')}"}
    await tenancy.refresh()
    engine.gate = asyncio.Event()
    flood = [asyncio.create_task(client.post("/v1/completions", BODY, headers)) for _ in range(9)]
    async with asyncio.timeout(10):
        while len(engine.requests) < 4:
            await asyncio.sleep(0.01)
    served = asyncio.create_task(client.post("/v1/completions", BODY, other))
    async with asyncio.timeout(10):
        while len(engine.requests) < 5:
            await asyncio.sleep(0.01)
    refused = await client.post("/v1/completions", BODY, other)
    assert (refused.status, refused.json["error"]["code"]) == (429, "queue_full")
    assert "1 of its answers wait" in refused.json["error"]["why"]
    engine.gate.set()
    statuses = [answer.status for answer in await asyncio.gather(*flood)]
    assert sorted(statuses) == [200] * 4 + [429] * 5
    assert (await served).status == 200
