from __future__ import annotations

import pytest

from turret_adapters.derivation import Derivation, Source
from turret_server.errors import Conflict, TurretError


@pytest.fixture
async def loaded(client):
    for name in ("sql", "json"):
        await client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": name})
    return client


async def test_the_list(loaded, settings, engine):
    cards = (await loaded.get("/v1/models")).json
    assert cards["object"] == "list"
    assert [card["id"] for card in cards["data"]] == ["demo", "smollm2", "sql", "json"]
    base, _, sql, _ = cards["data"]
    assert base["object"] == "model"
    assert (base["kind"], base["parent"], base["root"]) == ("base", None, "/models/demo")
    assert base["digest"] == engine.ready.weights_digest
    assert base["max_model_len"] == 2048
    assert (sql["kind"], sql["parent"]) == ("lora", "demo")
    assert sql["root"] == str(settings.adapter_roots[0] / "sql")
    assert sql["digest"] in engine.loaded


async def test_one_model(loaded):
    listed = (await loaded.get("/v1/models")).json["data"]
    for card in listed:
        assert (await loaded.get(f"/v1/models/{card['id']}")).json == card
    composed = (await loaded.get("/v1/models/sql:0.5+json")).json
    assert (composed["id"], composed["kind"]) == ("sql:0.5+json", "recipe")
    answer = await loaded.get("/v1/models/nope")
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")


async def test_named_recipes_are_models_once_their_adapters_are_loaded(make_client, engine):
    client = make_client(recipes={"strict": "sql:0.5+json"})
    assert "strict" not in [c["id"] for c in (await client.get("/v1/models")).json["data"]]
    for name in ("sql", "json"):
        await client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": name})
    (card,) = [c for c in (await client.get("/v1/models")).json["data"] if c["id"] == "strict"]
    assert (card["kind"], card["root"], card["parent"]) == ("recipe", "sql:0.5+json", "demo")
    assert (await client.chat(model="strict", max_tokens=1)).json["model"] == "strict"
    assert len(engine.requests[0].adapters) == 2


async def test_the_list_works_while_the_engine_starts(client, engine):
    engine.ready = None
    (card, _) = (await client.get("/v1/models")).json["data"]
    assert (card["id"], card["max_model_len"]) == ("demo", None)


async def test_a_derived_adapter_is_a_model(loaded, engine):
    service = loaded.app.state.service
    recipe = Derivation(
        method="ties", sources=(Source("sql"), Source("json", 0.5)), density=0.2, rank=8
    )
    record, _ = await service.adapters.derive("merged", recipe)
    card = (await loaded.get("/v1/models/merged")).json
    assert (card["kind"], card["parent"]) == ("derived", "demo")
    assert card["root"] == "ties(sql, json:0.5, density=0.2, rank=8)"
    assert card["digest"] == record.digest
    details = (await loaded.get("/v1/adapters/merged")).json
    assert details["notes"] == ["its rank drops 1.0%"]
    await loaded.chat(model="merged:0.5", max_tokens=1)
    assert engine.requests[-1].adapters[0].digest == record.digest
    for sources in ("merged", "nope"):
        again = Derivation(method="sum", sources=(Source(sources),))
        with pytest.raises(TurretError, match=f"'{sources}'"):
            await service.adapters.derive("other", again)
    with pytest.raises(Conflict):
        await service.adapters.derive("sql", recipe)
    with pytest.raises(Conflict):
        await service.adapters.derive("demo", recipe)


async def test_weights_per_module_reach_the_engine(loaded, engine):
    chosen = [{"name": "sql", "weight": {"v_proj": 0.25}}, {"name": "json", "weight": -1}]
    answer = await loaded.chat(model="demo", adapters=chosen, max_tokens=1)
    assert answer.status == 200
    sql, json = engine.loaded
    found = {use.digest: use.weight for use in engine.requests[-1].adapters}
    assert found == {sql: {"q_proj": 1.0, "v_proj": 0.25}, json: -1.0}


async def test_weights_per_layer_reach_the_engine(loaded, engine):
    table = {"layers.0-9": 0.5, "v_proj": 0.25, "layers.29.v_proj": 0}
    chosen = [{"name": "sql", "weight": table}]
    assert (await loaded.chat(model="demo", adapters=chosen, max_tokens=1)).status == 200
    assert engine.requests[-1].adapters[0].weight == {
        "q_proj": (0.5,) * 10 + (1.0,) * 20,
        "v_proj": (0.25,) * 29 + (0.0,),
    }


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"qproj": 1}, "names no place"),
        ({"o_proj": 1}, "it touches q_proj, v_proj"),
        ({"layers.30": 1}, "from 0 to 29"),
        ({"layers.0-3": 1, "layers.2-5": 2}, "neither is more specific"),
    ],
)
async def test_a_table_without_meaning_is_refused(loaded, table, why):
    answer = await loaded.chat(adapters=[{"name": "sql", "weight": table}], max_tokens=1)
    error = answer.json["error"]
    assert (answer.status, error["param"]) == (422, "adapters[0].weight")
    assert why in error["message"]


@pytest.mark.parametrize(
    "weight",
    [{"q_proj": "1"}, {"q_proj": True}, {"q_proj": {"0": 1}}, [1], "1", None, {"q_proj": 17}],
)
async def test_what_is_no_weight_is_refused(loaded, weight):
    answer = await loaded.chat(adapters=[{"name": "sql", "weight": weight}], max_tokens=1)
    assert answer.status == 400
    assert answer.json["error"]["param"] == "adapters[0].weight"
