"""The wall clock jumps by a day, forwards or back: only what is a date may follow it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from turret_server.tenancy.principal import Quotas
from turret_server.tenancy.service import Tenancy

DAY = 86_400
BODY = {"prompt": "Hi", "max_tokens": 2}


@pytest.fixture
def jump(monkeypatch):
    """Moves the wall clock of this process; the monotonic one goes on."""
    real = time.time

    def jump(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return jump


@pytest.fixture
def admin(admin):
    admin.create_tenant("acme", quotas=Quotas(requests_per_minute=2))
    return admin


@pytest.fixture
def ask(make_client, database, admin, tmp_path):
    """Asks with a key; `ask.tenancy` is the server's."""
    tenancy = Tenancy({}, database, tmp_path / "usage")
    client = make_client(tenancy=tenancy)

    async def ask(key, **fields):
        await tenancy.refresh()
        headers = {"authorization": f"Bearer {key}"}
        return await client.post("/v1/completions", {**BODY, **fields}, headers)

    ask.tenancy = tenancy
    return ask


@pytest.mark.parametrize("seconds", [DAY, -DAY])
async def test_quotas_neither_fill_nor_stick(ask, admin, jump, seconds):
    key = admin.create_key("acme")
    assert [(await ask(key)).status for _ in range(3)] == [200, 200, 429]
    jump(seconds)
    refused = await ask(key)
    assert refused.status == 429
    assert 25 <= int(refused.headers["retry-after"]) <= 30


@pytest.mark.parametrize("seconds", [DAY, -DAY])
async def test_a_request_in_flight_keeps_its_deadline(ask, admin, jump, engine, seconds):
    original = engine.model.logprobs

    def logprobs(prefix):
        jump(seconds)
        return original(prefix)

    engine.model.logprobs = logprobs
    answer = await ask(admin.create_key("acme"), timeout_s=30)
    assert answer.status == 200
    assert answer.json["usage"]["completion_tokens"] == 2


async def test_usage_is_of_the_day_on_which_it_was_accepted(ask, admin, jump, engine):
    accepted = datetime.now(UTC).date().isoformat()
    original = engine.model.logprobs

    def logprobs(prefix):
        jump(-DAY)
        return original(prefix)

    engine.model.logprobs = logprobs
    await ask(admin.create_key("acme"))
    await ask.tenancy.ledger.close()
    assert [row["day"] for row in admin.usage()] == [accepted]
