"""What a tenant sees: its own adapters and what it was granted; everything else does not exist."""

from __future__ import annotations

import asyncio
import json

import pytest

from turret_server.api.schema.fusion import parse_fusion
from turret_server.tenancy.principal import Scope
from turret_server.tenancy.service import Tenancy, static_keys

ROOT = "tk-root"


@pytest.fixture
def folders(tmp_path):
    """An adapter root with the operator's adapters, and a folder for each tenant."""
    root = tmp_path / "root"
    for name in ("sql", "dates", "acme/support", "beta/support"):
        (root / name).mkdir(parents=True)
        (root / name / "adapter_config.json").write_text(json.dumps({"name": name}))
    return root


@pytest.fixture
async def call(make_client, admin, database, folders, tmp_path):
    """Calls the server by the name of a tenant, or as "root"."""
    keys = {"root": ROOT}
    for tenant in ("acme", "beta"):
        admin.create_tenant(tenant)
        keys[tenant] = admin.create_key(tenant, scopes=[Scope.INFER, Scope.ADAPTERS])
    tenancy = Tenancy(static_keys([], [ROOT]), database, tmp_path / "usage")
    fusion = {"method": "proxy", "experts": ["sql"], "anchor": "demo"}
    client = make_client(
        tenancy=tenancy,
        adapter_roots=(folders,),
        recipes={"both": "sql:0.5+dates", "fused": ()},
        fusions={"fused": parse_fusion(fusion)},
    )

    async def call(who, method, path, body=None):
        await tenancy.refresh()
        headers = {"authorization": f"Bearer {keys[who]}"}
        if method == "GET":
            return await client.get(path, headers)
        return await client.post(path, {} if body is None else body, headers, method=method)

    for name in ("sql", "dates"):
        assert (await call("root", "PUT", f"/v1/adapters/{name}", {"path": name})).status == 201
    return call


async def models(call, who):
    return [card["id"] for card in (await call(who, "GET", "/v1/models")).json["data"]]


async def ask(call, who, model, **fields):
    body = {"prompt": "Hi", "max_tokens": 1, "model": model, **fields}
    return await call(who, "POST", "/v1/completions", body)


async def test_without_grants_there_is_the_base_alone(call):
    assert await models(call, "acme") == ["demo", "smollm2"]
    assert (await ask(call, "acme", "demo")).status == 200
    for model in ("sql", "sql:0.5+dates", "both"):
        answer = await ask(call, "acme", model)
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    answer = await ask(call, "acme", "demo", adapters=[{"name": "sql"}])
    assert answer.status == 404


async def test_what_was_not_granted_answers_as_what_does_not_exist(call):
    hidden, missing = await ask(call, "acme", "sql"), await ask(call, "acme", "sqm")
    assert hidden.body.replace(b"sql", b"") == missing.body.replace(b"sqm", b"")
    for path in ("/v1/models/{}", "/v1/adapters/{}"):
        hidden = await call("acme", "GET", path.format("sql"))
        missing = await call("acme", "GET", path.format("sqm"))
        assert hidden.status == missing.status == 404
        assert hidden.body.replace(b"sql", b"") == missing.body.replace(b"sqm", b"")
    for model in ("sql", "sqm"):
        assert (
            await call("acme", "POST", "/tokenize", {"model": model, "prompt": "a"})
        ).status == 404


async def test_a_grant_shows_and_a_withdrawal_hides(call, admin):
    admin.grant("acme", ["sql"])
    assert await models(call, "acme") == ["demo", "smollm2", "sql"]
    assert await models(call, "beta") == ["demo", "smollm2"]
    assert (await ask(call, "acme", "sql")).status == 200
    admin.withdraw("acme", ["sql"])
    assert (await ask(call, "acme", "sql")).status == 404


async def test_a_recipe_comes_with_its_adapters(call, admin):
    admin.grant("acme", ["both"])
    assert (await ask(call, "acme", "both")).json["model"] == "both"
    assert sorted(await models(call, "acme")) == ["both", "dates", "demo", "smollm2", "sql"]


async def test_members_of_a_fusion_are_seen_as_models_are(call, admin):
    def fuse(name):
        return {"method": "product", "experts": [name]}

    hidden = await ask(call, "acme", "demo", fusion=fuse("sql"))
    missing = await ask(call, "acme", "demo", fusion=fuse("sqm"))
    assert hidden.status == 404
    assert hidden.body.replace(b"sql", b"") == missing.body.replace(b"sqm", b"")
    assert (await ask(call, "acme", "fused")).status == 404
    admin.grant("acme", ["fused"])
    assert (await ask(call, "acme", "fused")).json["model"] == "fused"
    assert (await ask(call, "acme", "demo", fusion=fuse("sql"))).status == 200
    assert sorted(await models(call, "acme")) == ["demo", "fused", "smollm2", "sql"]


async def test_two_tenants_use_one_name_for_what_is_their_own(call, engine):
    for who in ("acme", "beta"):
        answer = await call(who, "PUT", "/v1/adapters/support", {"path": "support"})
        assert (answer.status, answer.json["id"]) == (201, "support")
        assert await models(call, who) == ["demo", "smollm2", "support"]
        assert (await ask(call, who, "support")).json["model"] == "support"
    first, second = engine.requests
    assert first.adapters != second.adapters
    assert sorted(await models(call, "root"))[:2] == ["acme/support", "beta/support"]


async def test_metrics_tell_tenants_adapters_apart_and_forget_them(call):
    for who in ("acme", "beta"):
        await call(who, "PUT", "/v1/adapters/support", {"path": "support"})
        await ask(call, who, "support")
    page = (await call("root", "GET", "/metrics")).body.decode()
    for name in ("acme/support", "beta/support"):
        assert f'turret_model_generation_tokens_total{{model="{name}"}} 1.0' in page
    await call("acme", "DELETE", "/v1/adapters/support")
    page = (await call("root", "GET", "/metrics")).body.decode()
    assert "acme/support" not in page
    assert "beta/support" in page


async def test_its_own_goes_before_what_was_granted(call, admin, engine):
    admin.grant("acme", ["*"])
    await ask(call, "acme", "sql")
    await call("acme", "PUT", "/v1/adapters/sql", {"path": "support"})
    await ask(call, "acme", "sql")
    await ask(call, "root", "sql")
    granted, own, operators = engine.requests
    assert granted.adapters == operators.adapters != own.adapters
    assert (await models(call, "acme")).count("sql") == 1


@pytest.mark.parametrize("path", ["sql", "../sql", "beta/support", "../beta/support"])
async def test_nothing_is_read_outside_the_tenants_own_folder(call, folders, path):
    for spelt in (path, str((folders / "acme" / path).resolve())):
        answer = await call("acme", "PUT", "/v1/adapters/x", {"path": spelt})
        assert answer.status in (403, 404)
    assert await models(call, "acme") == ["demo", "smollm2"]


async def test_a_link_does_not_lead_out(call, folders):
    (folders / "acme" / "link").symlink_to(folders / "beta" / "support")
    answer = await call("acme", "PUT", "/v1/adapters/x", {"path": "link"})
    assert answer.status == 403


async def test_only_its_own_is_unloaded(call, admin):
    admin.grant("acme", ["*"])
    await call("beta", "PUT", "/v1/adapters/support", {"path": "support"})
    for name in ("sql", "support", "beta%2Fsupport"):
        assert (await call("acme", "DELETE", f"/v1/adapters/{name}")).status in (400, 404)
    assert (await ask(call, "beta", "support")).status == 200
    assert (await call("beta", "DELETE", "/v1/adapters/support")).status == 200
    assert (await ask(call, "beta", "support")).status == 404


async def test_another_tenants_name_cannot_be_spelt(call, admin):
    admin.grant("acme", ["*"])
    await call("beta", "PUT", "/v1/adapters/support", {"path": "support"})
    assert (await ask(call, "acme", "beta/support")).status == 404
    assert (await call("acme", "GET", "/v1/models/beta/support")).status == 404
    assert "beta/support" not in await models(call, "acme")
    answer = await call(
        "acme", "POST", "/v1/load_lora_adapter", {"lora_name": "beta/x", "lora_path": "support"}
    )
    assert answer.status == 400


async def test_pinning_and_deriving_are_the_operators(call, admin):
    admin.grant("acme", ["*"])
    await call("acme", "PUT", "/v1/adapters/mine", {"path": "support"})
    for body in (
        {"path": "support", "pin": True},
        {"pin": True},
        {"derive": {"method": "sum", "sources": ["sql", "dates"]}},
    ):
        answer = await call("acme", "PUT", "/v1/adapters/mine", body)
        assert (answer.status, answer.json["error"]["code"]) == (403, "forbidden")


async def test_its_own_adapters_have_a_quota(call, admin):
    admin.change_tenant("acme", quotas={"resident_adapters": 1})
    assert (await call("acme", "PUT", "/v1/adapters/a", {"path": "support"})).status == 201
    refused = await call("acme", "PUT", "/v1/adapters/b", {"path": "support"})
    assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert (await call("acme", "PUT", "/v1/adapters/a", {"path": "support"})).status == 200
    await call("acme", "DELETE", "/v1/adapters/a")
    assert (await call("acme", "PUT", "/v1/adapters/b", {"path": "support"})).status == 201


async def test_loads_at_once_do_not_overshoot_the_quota(call, admin, engine):
    admin.change_tenant("acme", quotas={"resident_adapters": 2})
    engine.load_gate = asyncio.Event()
    puts = [
        asyncio.create_task(call("acme", "PUT", f"/v1/adapters/{name}", {"path": "support"}))
        for name in "abcd"
    ]
    await asyncio.sleep(0.05)
    engine.load_gate.set()
    assert sorted([(await put).status for put in puts]) == [201, 201, 429, 429]


async def test_a_shelf_is_granted_name_by_name(make_client, admin, database, folders, tmp_path):
    admin.create_tenant("acme")
    admin.grant("acme", ["sql"])
    key = {"authorization": f"Bearer {admin.create_key('acme')}"}
    tenancy = Tenancy({}, database, tmp_path / "usage")
    client = make_client(tenancy=tenancy, adapter_dirs=(folders,))
    listed = [card["id"] for card in (await client.get("/v1/models", key)).json["data"]]
    assert listed == ["demo", "smollm2", "sql"]
    for model, status in (("sql", 200), ("dates", 404)):
        body = {"prompt": "Hi", "max_tokens": 1, "model": model}
        assert (await client.post("/v1/completions", body, key)).status == status
