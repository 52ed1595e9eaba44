from __future__ import annotations

import hashlib

import pytest

from turret_server.api.auth import ANONYMOUS, OPEN
from turret_server.tenancy.service import Tenancy, static_keys

USER, ADMIN = "tk-user", "tk-admin"


@pytest.fixture
def guarded(make_client):
    return make_client(tenancy=Tenancy(static_keys([USER], [ADMIN])))


def bearer(key):
    return {"authorization": f"Bearer {key}"}


async def test_every_route_needs_a_key_unless_it_is_meant_to_be_open(guarded):
    schema = guarded.app.openapi()
    operations = [(m.upper(), p) for p, item in schema["paths"].items() for m in item]
    assert len(operations) > 15
    for method, path in [*operations, ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/x")]:
        path = path.replace("{name}", "x").replace("{model}", "x")
        answer = await guarded.post(path, b"", method=method)
        assert (answer.status == 401) == (path not in OPEN | ANONYMOUS), (method, path)
        if answer.status == 401:
            assert answer.json["error"]["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "x-request-id" in answer.headers


async def test_open_routes(guarded):
    for path in OPEN:
        assert (await guarded.get(path)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("tk-wrong"),
        bearer(""),
        {"authorization": USER},
        {"authorization": f"Basic {USER}"},
        {"x-api-key": "tk-wrong"},
        bearer(hashlib.sha256(USER.encode()).hexdigest()),
    ],
)
async def test_wrong_keys(guarded, headers):
    assert (await guarded.get("/v1/adapters", headers)).status == 401


@pytest.mark.parametrize("headers", [bearer(USER), {"x-api-key": USER}, bearer(ADMIN)])
async def test_right_keys(guarded, headers):
    assert (await guarded.get("/v1/adapters", headers)).status == 200


async def test_changing_adapters_needs_an_admin_key(guarded, engine):
    body = {"lora_name": "sql", "lora_path": "sql"}
    answer = await guarded.post("/v1/load_lora_adapter", body, bearer(USER))
    assert (answer.status, answer.json["error"]["code"]) == (403, "forbidden")
    for method in ("PUT", "DELETE"):
        answer = await guarded.post("/v1/adapters/a", {}, bearer(USER), method=method)
        assert answer.status == 403
    assert engine.loaded == {}
    assert (await guarded.post("/v1/load_lora_adapter", body, bearer(ADMIN))).status == 200


async def test_without_a_key_only_the_base_is_listed(guarded):
    body = {"lora_name": "sql", "lora_path": "sql"}
    await guarded.post("/v1/load_lora_adapter", body, bearer(ADMIN))
    names = [card["id"] for card in (await guarded.get("/v1/models")).json["data"]]
    assert names == ["demo", "smollm2"]
    names = [card["id"] for card in (await guarded.get("/v1/models", bearer(USER))).json["data"]]
    assert names == ["demo", "smollm2", "sql"]
    assert (await guarded.get("/v1/models", bearer("tk-wrong"))).status == 401
    assert (await guarded.get("/v1/models/sql")).status == 401


async def test_callers_do_not_share_prefixes_or_turns(guarded, engine):
    body = {"prompt": "Hi", "max_tokens": 1, "cache_salt": "salt"}
    gateway = {"x-gateway-inference-fairness-id": "other"}
    for key in (USER, ADMIN):
        await guarded.post("/v1/completions", body, {**bearer(key), **gateway})
    first, second = engine.requests
    assert first.cache_namespace.endswith("/salt")
    assert first.cache_namespace != second.cache_namespace
    assert first.fairness_key != second.fairness_key
    assert "other" not in (first.fairness_key, second.fairness_key)


async def test_prefixes_are_shared_on_request_and_then_nobody_hears_of_it(make_client, engine):
    keys = static_keys([USER, "tk-other"])
    client = make_client(tenancy=Tenancy(keys), share_prefixes=True)
    body = {"prompt": "Hi", "max_tokens": 1}
    for key, salt in ((USER, {}), ("tk-other", {}), ("tk-other", {"cache_salt": "mine"})):
        answer = await client.post("/v1/completions", {**body, **salt}, bearer(key))
        assert answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    first, second, salted = (request.cache_namespace for request in engine.requests)
    assert first == second != salted
    assert len({request.cache_owner for request in engine.requests}) == 2


async def test_a_key_of_a_gateway_says_whose_turn_it_is(make_client, engine):
    keys = static_keys([USER], [ADMIN], ["tk-gateway"])
    client = make_client(tenancy=Tenancy(keys))
    body = {"prompt": "Hi", "max_tokens": 1}
    for named in ("a", "b", "x" * 500, ""):
        headers = {**bearer("tk-gateway"), "x-gateway-inference-fairness-id": named}
        assert (await client.post("/v1/completions", body, headers)).status == 200
    tenant = next(p.tenant.name for p in keys.values() if len(p.scopes) == 2)
    turns = [request.fairness_key for request in engine.requests]
    assert turns == [f"{tenant}/a", f"{tenant}/b", f"{tenant}/{'x' * 128}", tenant]
    assert len({request.cache_namespace for request in engine.requests}) == 1
    assert (await client.get("/v1/admin/tenants", bearer("tk-gateway"))).status == 403


async def test_an_open_server_believes_its_gateway(client, engine):
    headers = {"x-gateway-inference-fairness-id": "tenant-7"}
    await client.post("/v1/completions", {"prompt": "Hi", "max_tokens": 1}, headers)
    assert engine.requests[0].fairness_key == "tenant-7"
