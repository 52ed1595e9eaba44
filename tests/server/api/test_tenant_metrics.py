"""Who sees tenants in the metrics, and how many of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.server.api.test_metrics import parsed, scrape, value

from turret_server.telemetry.record import RequestRecord
from turret_server.tenancy.principal import Quotas, Scope
from turret_server.tenancy.service import Tenancy, static_keys


@pytest.fixture
async def call(make_client, admin, database, tmp_path):
    """Calls the server by the name of a key; `None` has none."""
    keys = {"root": "tk-root", "asker": "tk-asker", "metrics": "tk-metrics"}
    for tenant in ("acme", "beta"):
        admin.create_tenant(tenant, quotas=Quotas(requests_per_minute=3))
        keys[tenant] = admin.create_key(tenant, scopes=[Scope.INFER, Scope.ADAPTERS])
    keys["watcher"] = admin.create_key("beta", scopes=[Scope.METRICS])
    (tmp_path / "root/acme/support").mkdir(parents=True)
    (tmp_path / "root/acme/support/adapter_config.json").write_text(json.dumps({}))
    tenancy = Tenancy(
        static_keys(["tk-asker"], ["tk-root"], metrics_keys=["tk-metrics"]),
        database,
        tmp_path / "usage",
    )
    client = make_client(tenancy=tenancy, adapter_roots=(tmp_path / "root",))

    async def call(who, method, path, body=None):
        await tenancy.refresh()
        headers = {} if who is None else {"authorization": f"Bearer {keys[who]}"}
        return await client.post(path, body or {}, headers, method=method)

    call.tenancy, call.app, call.keys = tenancy, client.app, keys
    return call


async def ask(call, who, **fields):
    return await call(who, "POST", "/v1/completions", {"prompt": "Hi", "max_tokens": 2, **fields})


async def page(call, who):
    answer = await call(who, "GET", "/metrics")
    assert answer.status == 200
    return answer.body.decode()


async def test_tenants_are_told_apart(call):
    await ask(call, "acme")
    await ask(call, "acme", max_tokens=5, model="nope")
    await ask(call, "beta")
    samples = parsed(await page(call, "root"))

    def of(name, tenant):
        return value(samples, f"turret_tenant_{name}", tenant=tenant)

    assert (of("requests_total", "acme"), of("requests_total", "beta")) == (2, 1)
    assert of("generation_tokens_total", "acme") == 2
    assert of("prompt_tokens_total", "acme") == of("prompt_tokens_total", "beta") > 0
    assert of("time_to_first_token_seconds_count", "acme") == 1
    assert of("refused_requests_total", "acme") == of("failed_requests_total", "acme") == 0


async def test_what_a_quota_refuses_is_counted(call):
    statuses = [(await ask(call, "acme")).status for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    samples = parsed(await page(call, "root"))
    assert value(samples, "turret_tenant_refused_requests_total", tenant="acme") == 1


@pytest.mark.parametrize("who", ["root", "metrics", "watcher"])
async def test_who_may_sees_tenants_and_their_adapters(call, who):
    assert (await call("acme", "PUT", "/v1/adapters/support", {"path": "support"})).status == 201
    await ask(call, "acme", model="support")
    text = await page(call, who)
    assert 'tenant="acme"' in text
    assert 'model="acme/support"' in text


@pytest.mark.parametrize("who", [None, "asker", "acme", "beta"])
async def test_everybody_else_sees_neither(call, who):
    assert (await call("acme", "PUT", "/v1/adapters/support", {"path": "support"})).status == 201
    await ask(call, "acme", model="support")
    text = await page(call, who)
    assert "turret_num_requests_running" in text
    assert not any(secret in text for secret in ("acme", "support", "tenant=", *call.keys.values()))


async def test_an_unknown_key_is_refused(call):
    call.keys["stranger"] = "tk-stranger"
    assert (await call("stranger", "GET", "/metrics")).status == 401


async def test_a_key_for_metrics_may_do_nothing_else(call):
    assert (await ask(call, "metrics")).status == 403
    assert (await call("watcher", "GET", "/v1/models")).status == 403
    assert (await call("watcher", "GET", "/v1/admin/tenants")).status == 403


async def test_tenants_that_are_gone_are_forgotten(call):
    await ask(call, "acme")
    call.app.state.service.metrics.request(tenant_record(call, "asker", "gone"), 200)
    text = await page(call, "root")
    assert 'tenant="acme"' in text
    assert "gone" not in text


async def test_ten_thousand_tenants_get_no_more_series_than_a_hundred(make_client):
    keys = static_keys([f"tk-{i}" for i in range(10_000)], ["tk-root"])
    client = make_client(tenancy=Tenancy(keys))
    root = {"authorization": "Bearer tk-root"}
    few = len(await scrape(client, root))
    for principal in keys.values():
        record = RequestRecord(id="r", principal=principal, label="demo", prompt_tokens=1)
        client.app.state.service.metrics.request(record, 200)
    samples = await scrape(client, root)
    assert len(samples) - few < 101 * 10 + 20
    name = "turret_tenant_prompt_tokens_total"
    assert sum(v for (n, _), v in samples.items() if n == name) == len(keys)
    assert value(samples, name, tenant="other") == len(keys) - 100


async def test_the_ledger_shows_its_health(call, monkeypatch):
    async def full(*entries):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call.tenancy.ledger._journal, "append", full)
    assert (await ask(call, "acme")).status == 503
    samples = parsed(await page(call, None))
    assert value(samples, "turret_ledger_journal_errors_total") == 1
    assert value(samples, "turret_ledger_database_errors_total") == 0
    assert value(samples, "turret_ledger_waiting_requests") == 0
    assert value(samples, "turret_database_up") == 1
    free, size = (value(samples, f"turret_state_disk_{n}bytes") for n in ("free_", ""))
    assert 0 < free <= size


def tenant_record(call, who, name):
    principal = call.tenancy.find(call.keys[who])
    return RequestRecord(
        id="r",
        label="demo",
        principal=replace(principal, tenant=replace(principal.tenant, name=name)),
    )
