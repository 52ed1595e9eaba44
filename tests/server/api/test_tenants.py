"""Administration over HTTP, and what a key of the database may do."""

from __future__ import annotations

import asyncio
import threading

import pytest

from turret_server.api.threads import in_thread
from turret_server.tenancy.database import DatabaseDown
from turret_server.tenancy.principal import Scope
from turret_server.tenancy.service import Tenancy, static_keys

ROOT = "tk-root"


@pytest.fixture
def client(make_client, database, tmp_path):
    """A server with tenants, and one admin key of the command line."""
    return make_client(tenancy=Tenancy(static_keys([], [ROOT]), database, tmp_path / "usage"))


@pytest.fixture
def call(client):
    """Calls a route with a key, the operator's by default."""

    async def call(method, path, body=None, key=ROOT):
        headers = {"authorization": f"Bearer {key}"}
        if method == "GET":
            return await client.get(path, headers)
        return await client.post(path, {} if body is None else body, headers, method=method)

    return call


@pytest.fixture
async def acme(call):
    """A tenant with a key that may ask."""
    await call("POST", "/v1/admin/tenants", {"name": "acme"})
    return (await call("POST", "/v1/admin/keys", {"tenant": "acme"})).json["key"]


async def test_from_nothing_to_a_key_that_works(call):
    body = {"name": "acme", "requests_per_minute": 5, "weight": 2.0}
    created = await call("POST", "/v1/admin/tenants", body)
    assert created.status == 201
    assert created.json["quotas"]["requests_per_minute"] == 5
    assert created.json["grants"] == []
    key = (await call("POST", "/v1/admin/keys", {"tenant": "acme", "scopes": ["infer"]})).json[
        "key"
    ]
    assert (await call("GET", "/v1/models", key=key)).status == 200
    (listed,) = (await call("GET", "/v1/admin/keys?tenant=acme")).json["data"]
    assert listed["prefix"] == key[:11]
    assert listed["scopes"] == ["infer"]
    granted = await call("POST", "/v1/admin/tenants/acme/grants", {"names": ["sql", "dates"]})
    assert granted.json["grants"] == ["dates", "sql"]
    withdrawn = await call("DELETE", "/v1/admin/tenants/acme/grants/sql")
    assert withdrawn.json["grants"] == ["dates"]
    changed = await call("PATCH", "/v1/admin/tenants/acme", {"requests_per_minute": None})
    assert changed.json["quotas"]["requests_per_minute"] is None
    assert changed.json["weight"] == 2.0
    assert [t["name"] for t in (await call("GET", "/v1/admin/tenants")).json["data"]] == ["acme"]


async def test_a_revoked_key_is_refused_at_once(call, acme):
    assert (await call("DELETE", f"/v1/admin/keys/{acme[:11]}")).status == 204
    assert (await call("GET", "/v1/models", key=acme)).status == 401


async def test_a_rotated_key_ends_after_its_overlap(call, acme):
    answer = await call("POST", f"/v1/admin/keys/{acme[:11]}/rotate", {"overlap_s": 0})
    assert answer.status == 201
    assert (await call("GET", "/v1/models", key=acme)).status == 401
    assert (await call("GET", "/v1/models", key=answer.json["key"])).status == 200


async def test_administration_needs_its_scope(client, call, acme):
    schema = client.app.openapi()
    paths = [
        (
            method.upper(),
            path.replace("{name}", "x").replace("{prefix}", "x").replace("{adapter}", "x"),
        )
        for path, item in schema["paths"].items()
        for method in item
        if path.startswith("/v1/admin")
    ]
    assert len(paths) > 8
    for method, path in paths:
        answer = await call(method, path, {}, key=acme)
        assert (answer.status, answer.json["error"]["code"]) == (403, "forbidden"), (method, path)
    assert (await call("GET", "/v1/admin/audit")).json["data"][0]["actor"] != acme


async def test_a_key_with_the_scope_may_change_adapters(call, acme, admin):
    body = {"lora_name": "mine", "lora_path": "sql"}
    refused = await call("POST", "/v1/load_lora_adapter", body, key=acme)
    assert "'adapters'" in refused.json["error"]["why"]
    key = admin.create_key("acme", scopes=[Scope.ADAPTERS])
    await call("POST", "/v1/admin/tenants/acme/grants", {"names": ["x"]})  # the server looks again
    assert (await call("POST", "/v1/load_lora_adapter", body, key=key)).status != 403


async def test_every_change_is_in_the_audit_log_with_who_made_it(call, acme):
    await call("DELETE", f"/v1/admin/keys/{acme[:11]}")
    rows = (await call("GET", "/v1/admin/audit?limit=2")).json["data"]
    assert [row["action"] for row in rows] == ["revoke key", "create key"]
    assert len({row["actor"] for row in rows}) == 1
    assert acme not in str(rows)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/admin/tenants", {"name": "Not A Name"}, 400),
        ("POST", "/v1/admin/tenants", {"name": "acme"}, 409),
        ("POST", "/v1/admin/tenants", {"name": "b", "tokens_per_minute": -1}, 400),
        ("POST", "/v1/admin/tenants", {"name": "b", "tokens": 1}, 400),
        ("PATCH", "/v1/admin/tenants/acme", {}, 400),
        ("PATCH", "/v1/admin/tenants/nobody", {"weight": 1.0}, 404),
        ("POST", "/v1/admin/tenants/acme/grants", {"names": []}, 400),
        ("POST", "/v1/admin/tenants/acme/grants", {"names": ["a,b"]}, 400),
        ("POST", "/v1/admin/keys", {"tenant": "nobody"}, 404),
        ("POST", "/v1/admin/keys", {"tenant": "acme", "scopes": ["wish"]}, 400),
        ("POST", "/v1/admin/keys", {"tenant": "acme", "lifetime_s": 0}, 400),
        ("DELETE", "/v1/admin/keys/tk-nothing", None, 404),
        ("GET", "/v1/admin/usage?since=yesterday", None, 400),
        ("GET", "/v1/admin/audit?limit=0", None, 400),
    ],
)
async def test_bad_input_is_named(call, acme, method, path, body, status):
    answer = await call(method, path, body)
    assert answer.status == status
    assert answer.json["error"]["what"]


async def test_a_server_without_a_database_says_so(make_client):
    client = make_client()
    answer = await client.get("/v1/admin/tenants")
    assert (answer.status, answer.json["error"]["code"]) == (404, "no_tenants")
    assert "--database" in answer.json["error"]["fix"]


async def test_a_key_is_revoked_while_slow_servers_keep_every_download(call, acme):
    goes_on = threading.Event()
    downloads = [asyncio.create_task(in_thread(lambda: goes_on.wait(20))) for _ in range(4)]
    await asyncio.sleep(0.05)
    try:
        async with asyncio.timeout(5):
            revoked = await call("DELETE", f"/v1/admin/keys/{acme[:11]}")
        assert revoked.status == 204
    finally:
        goes_on.set()
        await asyncio.gather(*downloads)


async def test_a_new_key_is_shown_though_the_database_goes_away_behind_it(
    call, client, acme, monkeypatch
):
    """It was made and shown to nobody, and the one it replaced was about to end."""
    tenancy = client.app.state.service.settings.tenancy

    async def fail():
        raise DatabaseDown("the database does not answer", "it is down")

    with monkeypatch.context() as patched:
        patched.setattr(tenancy, "refresh", fail)
        rotated = await call("POST", f"/v1/admin/keys/{acme[:11]}/rotate")
        assert rotated.status == 201
        made = await call("POST", "/v1/admin/keys", {"tenant": "acme"})
        assert made.status == 201
        revoked = await call("DELETE", f"/v1/admin/keys/{acme[:11]}")
        assert revoked.status == 503  # it still works here
    await tenancy.refresh()
    for new in (rotated, made):
        assert (await call("GET", "/v1/models", key=new.json["key"])).status == 200
