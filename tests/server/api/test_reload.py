"""A configuration in the place of another: whole, or not at all."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from turret_server.api.reload import Reloader, Served
from turret_server.api.schema.fusion import parse_fusion
from turret_server.api.schema.rerank import parse_rerank
from turret_server.config import ServeConfig
from turret_server.errors import EngineUnavailable
from turret_server.pipeline.recipe_config import parse_recipes
from turret_server.reconfigure import Reconfigure
from turret_server.sources.settings import parse_adapters
from turret_server.tenancy.service import Tenancy, static_keys

OPEN = ServeConfig(model="demo")


def served(config: ServeConfig) -> Served:
    return Served(
        adapters=parse_adapters(config.adapters),
        recipes=parse_recipes(config.recipes, parse_fusion, parse_rerank),
        roots=config.adapter_roots,
        remotes=config.adapter_remotes,
        dirs=config.adapter_dirs,
        keys=static_keys(config.api_keys, config.admin_keys),
    )


@pytest.fixture
def root(settings):
    return settings.adapter_roots[0]


@pytest.fixture
def start(make_client, root):
    """`client, config = await start(...)`: a server; `config(...)` reloads it with changes."""

    async def start(**first):
        current = replace(OPEN, adapter_roots=(root,), **first)
        tenancy = Tenancy(static_keys(current.api_keys, current.admin_keys))
        client = make_client(tenancy=tenancy)
        service = client.app.state.service
        empty = served(replace(current, adapters={}, recipes={}))
        reloader = Reloader(service, empty)
        await reloader.apply(served(current))
        again = {"config": current}
        client.app.state.reload = Reconfigure(current, lambda: again["config"], served, reloader)

        async def reload(headers=None, **changes):
            again["config"] = replace(again["config"], **changes)
            return await client.post("/v1/admin/reload", {}, headers)

        return client, reload

    return start


async def names(client, headers=None):
    return {card["id"] for card in (await client.get("/v1/models", headers)).json["data"]}


async def loads(client):
    page = (await client.get("/metrics")).body.decode()
    return float(page.split('turret_adapter_loads_total{outcome="loaded"} ')[1].split()[0])


async def test_adapters_and_recipes_change_together(start, engine, root):
    client, reload = await start(adapters={"a": str(root / "sql"), "b": str(root / "json")})
    assert await loads(client) == 2.0
    answer = await reload(
        adapters={"b": str(root / "dates"), "c": str(root / "sql")},
        recipes={"both": "b:0.5+c", "merged": '{"method": "sum", "sources": ["b", "c"]}'},
    )
    assert answer.status == 200, answer.body
    assert answer.json == {
        "changed": ["adapters.a", "adapters.b", "adapters.c", "recipes.both", "recipes.merged"],
        "needs_restart": [],
        "waiting": {},
    }
    assert await names(client) == {"demo", "smollm2", "b", "c", "both", "merged"}
    assert await loads(client) == 5.0
    assert (await client.complete(model="both", max_tokens=1)).status == 200
    assert (await client.complete(model="a", max_tokens=1)).status == 404
    assert set(engine.loaded.values()) >= {str(root / "dates"), str(root / "sql")}
    assert str(root / "json") not in engine.loaded.values()
    assert (await reload(adapters={}, recipes={})).json["changed"] == [
        *("adapters.b", "adapters.c", "recipes.both", "recipes.merged")
    ]
    assert await names(client) == {"demo", "smollm2"}
    assert engine.loaded == {}


async def test_recipes_whose_adapters_are_not_there_are_told(start, root):
    client, reload = await start(adapters={"a": str(root / "sql")}, recipes={"r": "a:0.5"})
    answer = await reload(adapters={}, recipes={"r": "a:0.5", "s": "b+sql"}, adapter_dirs=(root,))
    assert answer.json["waiting"] == {"recipes.r": ["a"], "recipes.s": ["b"]}
    await client.post("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": str(root / "sql")})
    assert (await reload()).json["waiting"] == {"recipes.s": ["b"]}


async def test_an_unchanged_file_changes_nothing(start, engine, root):
    client, reload = await start(
        adapters={"a": str(root / "sql")}, recipes={"d": '{"method": "svd", "sources": ["a"]}'}
    )
    before = client.app.state.service.catalog.records()
    assert (await reload()).json == {"changed": [], "needs_restart": [], "waiting": {}}
    assert client.app.state.service.catalog.records() == before


async def test_files_that_changed_are_read_again_and_what_was_unloaded_comes_back(start, root):
    client, reload = await start(adapters={"a": str(root / "sql"), "b": str(root / "json")})
    (root / "sql" / "adapter_config.json").write_text('{"name": "sql", "version": 2}')
    await client.post("/v1/unload_lora_adapter", {"lora_name": "b"})
    assert (await reload()).json["changed"] == ["adapters.a", "adapters.b"]
    assert await names(client) == {"demo", "smollm2", "a", "b"}


async def test_an_adapters_share_changes(start, engine, root):
    client, reload = await start(adapters={"a": str(root / "sql")})
    table = f'{{"source": "{root / "sql"}", "share": 2.5}}'
    assert (await reload(adapters={"a": table})).json["changed"] == ["adapters.a"]
    await client.complete(model="a", max_tokens=1)
    assert engine.requests[-1].lane_weight == 2.5


async def test_recipes_that_rerank(start, root):
    client, reload = await start(adapters={"a": str(root / "sql")})
    best = {"best": '{"adapters": ["a"], "rerank": {"candidates": 3}}'}
    answer = await reload(recipes=best)
    assert answer.json.get("changed") == ["recipes.best"], answer.json
    assert client.app.state.service.recipes.reranks["best"].candidates == 3
    other = {"best": '{"adapters": ["a"], "rerank": {"candidates": 2}}'}
    assert (await reload(recipes=other)).json["changed"] == ["recipes.best"]
    refused = await reload(recipes={"best": '{"adapters": ["a"], "rerank": {"scorer": "none"}}'})
    assert refused.status == 422
    assert refused.json["error"]["param"] == "recipes.best"
    assert client.app.state.service.recipes.reranks["best"].candidates == 2


async def test_what_was_loaded_at_run_time_stays(start, root):
    client, reload = await start()
    await client.post("/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": "sql"})
    await reload(adapters={"a": str(root / "json")})
    assert await names(client) == {"demo", "smollm2", "mine", "a"}
    refused = await reload(recipes={"mine": "a:0.5"})
    assert (refused.status, refused.json["error"]["param"]) == (422, "recipes.mine")


async def test_pins_follow_the_file(start, engine, root):
    pinned = f'{{"source": "{root / "sql"}", "pin": true}}'
    _, reload = await start(adapters={"a": pinned})
    (digest,) = engine.held
    assert (await reload(adapters={"a": str(root / "sql")})).json["changed"] == ["adapters.a"]
    assert engine.held == []
    assert digest in engine.loaded


@pytest.mark.parametrize(
    ("changes", "param", "what"),
    [
        ({"adapters": {"a": "{root}/sql", "b": "{root}/none"}}, "adapters.b", "none"),
        ({"adapters": {"a": "{root}/json", "b": "{root}/dates", "demo": "x"}}, None, "demo"),
        ({"adapters": {"b,": "{root}/sql"}}, None, "b,"),
        ({"recipes": {"r": "a:heavy"}}, None, "'r' cannot be served"),
        ({"recipes": {"r": "a+a"}}, "recipes.r", "'r' cannot be served"),
        ({"recipes": {"a": "b"}}, None, "'a' is taken"),
        ({"recipes": {"demo": "a"}}, "recipes.demo", "'demo' cannot be served"),
        ({"recipes": {"r": '{"method": "sum", "sources": ["x", "a"]}'}}, "recipes.r", "'x'"),
        ({"adapters": {}, "recipes": {"r": '{"method": "svd", "sources": ["a"]}'}}, None, "'a'"),
    ],
)
async def test_one_mistake_and_nothing_changes(start, engine, root, changes, param, what):
    client, reload = await start(adapters={"a": str(root / "sql")}, recipes={"r0": "a:0.5"})
    before, loaded = await names(client), dict(engine.loaded)
    filled = {
        table: {name: text.replace("{root}", str(root)) for name, text in entries.items()}
        for table, entries in changes.items()
    }
    answer = await reload(**filled)
    error = answer.json["error"]
    assert (answer.status, error["code"]) == (422, "invalid_configuration")
    assert param in (None, error["param"])
    assert what in error["message"]
    assert error["why"]
    assert await names(client) == before
    assert engine.loaded == loaded
    assert (await client.complete(model="r0", max_tokens=1)).status == 200


async def test_the_last_of_many_is_refused_and_the_others_leave_again(start, engine, root):
    pinned = {n: f'{{"source": "{root / n}", "pin": true}}' for n in ("sql", "json", "dates")}
    client, reload = await start(adapters={"sql": pinned["sql"]})
    held, loaded = list(engine.held), dict(engine.loaded)
    answer = await reload(adapters=pinned)  # the engine has two slots
    assert answer.status == 422
    assert (engine.held, engine.loaded) == (held, loaded)
    assert await names(client) == {"demo", "smollm2", "sql"}


async def test_an_engine_that_is_away_is_no_fault_of_the_file(start, engine, root):
    _, reload = await start()
    engine.load_error = EngineUnavailable("the engine is not available", "it is starting")
    answer = await reload(adapters={"a": str(root / "sql")})
    assert (answer.status, answer.json["error"]["code"]) == (503, "engine_unavailable")
    engine.load_error = None
    assert (await reload()).json["changed"] == ["adapters.a"]


@pytest.mark.parametrize(
    "body", [{"path": "sql"}, {"derive": {"method": "sum", "sources": ["dates"]}}]
)
async def test_a_load_that_waits_for_a_reload_does_not_take_the_name_of_its_recipe(
    start, engine, root, body
):
    client, reload = await start(adapters={"dates": str(root / "dates")})
    engine.load_gate = asyncio.Event()
    adapters = {"dates": str(root / "dates"), "json": str(root / "json")}
    reloading = asyncio.create_task(reload(adapters=adapters, recipes={"both": "dates+json"}))
    while not client.app.state.service.adapters._changing.locked():
        await asyncio.sleep(0.002)
    put = asyncio.create_task(client.post("/v1/adapters/both", body, method="PUT"))
    await asyncio.sleep(0.02)
    engine.load_gate.set()
    assert (await reloading).status == 200
    assert (await put).status == 409
    assert (await client.get("/v1/models/both")).json["kind"] == "recipe"
    assert (await reload()).status == 200


async def test_a_request_ends_with_what_it_began_with(start, engine, root):
    client, reload = await start(adapters={"a": str(root / "sql")}, recipes={"r": "a:0.5"})
    engine.gate = asyncio.Event()
    asking = asyncio.create_task(client.complete(model="r", max_tokens=2))
    while not engine.requests:
        await asyncio.sleep(0)
    (use,) = engine.requests[0].adapters
    assert (await reload(adapters={}, recipes={})).status == 200
    assert use.digest in engine.loaded
    engine.gate.set()
    assert (await asking).status == 200
    await asyncio.sleep(0)
    assert use.digest not in engine.loaded


async def test_keys_change_without_a_restart(start):
    old, new = ({"authorization": f"Bearer {key}"} for key in ("sk-old", "sk-new"))
    admin = {"authorization": "Bearer sk-admin"}
    client, reload = await start(api_keys=("sk-old",), admin_keys=("sk-admin",))
    assert (await reload(old, api_keys=("sk-new",))).status == 403
    assert (await reload(admin)).json["changed"] == ["api_keys"]
    assert (await client.get("/v1/models", old)).status == 401
    assert (await client.get("/v1/models", new)).status == 200
    answer = await reload(admin, api_keys=(), admin_keys=())
    assert (answer.status, answer.json["error"]["param"]) == (422, "api_keys")
    assert (await client.get("/v1/models")).json["data"][0]["id"] == "demo"
    assert (await client.get("/v1/adapters")).status == 401


async def test_where_loads_may_read_changes(start, root, tmp_path):
    client, reload = await start()
    (tmp_path / "more").mkdir()
    (root / "sql").rename(tmp_path / "more" / "sql")
    body = {"lora_name": "x", "lora_path": "sql"}
    assert (await client.post("/v1/load_lora_adapter", body)).status == 404
    answer = await reload(adapter_roots=(tmp_path / "more",), adapter_dirs=(root,))
    assert answer.json["changed"] == ["adapter_roots", "adapter_dirs"]
    assert (await client.post("/v1/load_lora_adapter", body)).status == 200
    assert await names(client) == {"demo", "smollm2", "x", "json", "dates"}


async def test_what_needs_a_restart_is_named_every_time(start):
    _, reload = await start()
    for _ in range(2):
        answer = await reload(max_running=7, port=1)
        assert answer.json["needs_restart"] == ["port", "max_running"]
    assert (await reload(max_running=64, port=8000)).json["needs_restart"] == []


async def test_without_a_file_there_is_nothing_to_read(client):
    answer = await client.post("/v1/admin/reload", {})
    assert answer.status == 400
    assert "--config" in answer.json["error"]["why"]


async def test_what_the_server_logs(start, root, caplog, monkeypatch):
    caplog.set_level("INFO", logger="turret")
    monkeypatch.setattr("turret_server.telemetry.logging.logger.propagate", True)
    _, reload = await start()
    await reload(adapters={"a": str(root / "none")})
    await reload(adapters={"a": str(root / "sql")})
    events = {r.getMessage(): r.fields for r in caplog.records if hasattr(r, "fields")}
    assert events["configuration_not_reloaded"]["param"] == "adapters.a"
    assert events["configuration_reloaded"]["changed"] == ["adapters.a"]
