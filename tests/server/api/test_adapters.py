from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from turret_server.errors import Unprocessable


async def load(client, name, path, **fields):
    return await client.post(
        "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path), **fields}
    )


async def unload(client, name):
    return await client.post("/v1/unload_lora_adapter", {"lora_name": name})


@pytest.fixture
def root(settings) -> Path:
    return settings.adapter_roots[0]


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_vllms_routes(client, engine, root):
    answer = await load(client, "sql", root / "sql")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.body == b"Success: LoRA adapter 'sql' added successfully."
    assert list(engine.loaded.values()) == [str(root / "sql")]
    answer = await unload(client, "sql")
    assert answer.status == 200
    assert answer.body == b"Success: LoRA adapter 'sql' removed successfully."
    assert engine.loaded == {}
    assert (await client.chat(model="sql")).status == 404


async def test_a_relative_path_lies_below_a_root(client, engine, root):
    assert (await load(client, "sql", "sql")).status == 200
    assert list(engine.loaded.values()) == [str(root / "sql")]


async def test_loading_a_name_again(client):
    await load(client, "sql", "sql")
    answer = await load(client, "sql", "json")
    assert (answer.status, answer.json["error"]["param"]) == (400, "lora_name")
    assert "load_inplace" in answer.json["error"]["fix"]
    assert (await load(client, "sql", "json", load_inplace=True)).status == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"lora_name": "sql"}, 400, "lora_path"),
        ({"lora_path": "sql"}, 400, "lora_name"),
        ({"lora_name": "", "lora_path": "sql"}, 400, "lora_name"),
        ({"lora_name": "a,b", "lora_path": "sql"}, 400, "lora_name"),
        ({"lora_name": "a+b", "lora_path": "sql"}, 400, "lora_name"),
        ({"lora_name": "demo", "lora_path": "sql"}, 409, "lora_name"),
        ({"lora_name": "sql", "lora_path": 5}, 400, "lora_path"),
        ({"lora_name": "sql", "lora_path": "nope"}, 404, "lora_path"),
        ({"lora_name": "sql", "lora_path": "a\x00b"}, 400, "lora_path"),
        ({"lora_name": "sql", "lora_path": "x" * 3000}, 400, "lora_path"),
        ({"lora_name": "sql", "lora_path": "../"}, 403, "lora_path"),
        ({"lora_name": "sql", "lora_path": "/etc"}, 403, "lora_path"),
        ({"lora_name": "sql", "lora_path": "/nope"}, 403, "lora_path"),
        ({"lora_name": "sql", "lora_path": "~/x"}, 403, "lora_path"),
        ({"lora_name": "sql", "lora_path": "sql", "load_inplace": "yes"}, 400, "load_inplace"),
        ({"lora_name": "sql", "lora_path": "sql", "pinned": True}, 400, "pinned"),
        ({"lora_name": "sql", "lora_path": "sql", "pin": "yes"}, 400, "pin"),
        ({"lora_name": "sql", "lora_path": "sql", "digest": "abc"}, 400, "digest"),
        ({"lora_name": "sql", "lora_path": "sql", "digest": "0" * 64}, 422, "lora_path"),
        ({"lora_name": "sql", "lora_path": "hf://owner/name"}, 403, "lora_path"),
        ({"lora_name": "sql", "lora_path": "s3://bucket/sql"}, 403, "lora_path"),
        ({"lora_name": "sql", "lora_path": "file:///etc"}, 403, "lora_path"),
    ],
)
async def test_refused_loads(client, engine, body, status, param):
    answer = await client.post("/v1/load_lora_adapter", body)
    assert (answer.status, answer.json["error"]["param"]) == (status, param), answer.body
    assert engine.loaded == {}
    assert client.app.state.service.catalog.names() == []


async def test_links_do_not_lead_out(client, root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "adapter_config.json").write_text("{}")
    (root / "link").symlink_to(outside)
    (root / "inner").symlink_to(root / "sql")
    assert (await load(client, "a", "link")).status == 403
    assert (await load(client, "b", "inner")).status == 200


async def test_a_loop_of_links(client, root):
    (root / "loop").symlink_to(root / "loop")
    assert (await load(client, "a", "loop")).status in (400, 404)


async def test_an_adapter_that_the_engine_refuses(client, engine):
    engine.load_error = Unprocessable("rank 512 is too large", "64 is the limit", "Use less.")
    answer = await load(client, "sql", "sql")
    assert (answer.status, answer.json["error"]["param"]) == (422, "lora_path")
    assert answer.json["error"]["fix"] == "Use less."
    assert client.app.state.service.catalog.names() == []


async def test_unloading_what_is_not_there(client):
    answer = await unload(client, "sql")
    assert (answer.status, answer.json["error"]["param"]) == (404, "lora_name")


async def test_the_resource(client, engine, root):
    answer = await client.post("/v1/adapters/sql", {"path": "sql"}, method="PUT")
    assert answer.status == 201
    card = answer.json
    assert card["id"] == "sql"
    assert card["path"] == str(root / "sql")
    assert (card["kind"], card["rank"], card["targets"]) == ("lora", 8, ["q_proj", "v_proj"])
    assert card["digest"] in engine.loaded
    assert (card["resident"], card["tier"], card["pinned"]) == (False, "disk", False)
    assert card["source"] == card["path"]
    assert card["sites"] == {"q_proj": "0-29", "v_proj": "0-29"}
    assert (card["base_model"], card["served_base"], card["base_match"]) == ("demo", "demo", True)
    answer = await client.post("/v1/adapters/sql", {"path": "json"}, method="PUT")
    assert answer.status == 200
    assert answer.json["digest"] != card["digest"]
    assert len(engine.loaded) == 1
    listed = (await client.get("/v1/adapters")).json
    assert listed["data"] == [answer.json]
    assert (await client.get("/v1/adapters/sql")).json == answer.json
    answer = await client.post("/v1/adapters/sql", b"", method="DELETE")
    assert answer.json == {"id": "sql", "object": "adapter", "deleted": True}
    assert (await client.get("/v1/adapters/sql")).status == 404
    assert (await client.post("/v1/adapters/sql", b"", method="DELETE")).status == 404
    assert engine.loaded == {}


@pytest.mark.parametrize("name", ["a:b", "a,b", "demo", "x" * 129, "a b"])
async def test_names_that_the_resource_refuses(client, name):
    answer = await client.post(f"/v1/adapters/{name}", {"path": "sql"}, method="PUT")
    assert answer.status in (400, 409)
    assert answer.json["error"]["param"] == "name"


async def test_content_stays_while_another_name_has_it(client, engine):
    await load(client, "a", "sql")
    await load(client, "b", "sql")
    assert len(engine.loaded) == 1
    await unload(client, "a")
    assert len(engine.loaded) == 1
    await unload(client, "b")
    assert engine.loaded == {}


async def test_a_request_keeps_the_content_it_began_with(client, engine):
    await load(client, "sql", "sql")
    (old,) = engine.loaded
    engine.text("one two three")
    engine.gate = asyncio.Event()
    running = asyncio.create_task(client.chat(model="sql"))
    while not engine.requests:
        await asyncio.sleep(0.002)
    assert (await load(client, "sql", "json", load_inplace=True)).status == 200
    assert len(engine.loaded) == 2  # the old content is in use
    engine.gate.set()
    answer = await running
    await settle()
    assert answer.status == 200
    assert engine.requests[0].adapters[0].digest == old
    assert old not in engine.loaded
    await client.chat(model="sql", max_tokens=1)
    assert engine.requests[1].adapters[0].digest in engine.loaded


async def test_unloading_what_is_in_use_waits_for_its_requests(client, engine):
    await load(client, "sql", "sql")
    engine.text("one two three")
    engine.gate = asyncio.Event()
    running = asyncio.create_task(client.chat(model="sql", stream=True))
    while not engine.requests:
        await asyncio.sleep(0.002)
    assert (await unload(client, "sql")).status == 200
    assert (await client.chat(model="sql")).status == 404
    assert len(engine.loaded) == 1
    engine.gate.set()
    assert (await running).events[-1]["choices"][0]["finish_reason"] == "stop"
    await settle()
    assert engine.loaded == {}


async def test_content_loaded_again_before_it_left_stays(client, engine):
    await load(client, "sql", "sql")
    engine.text("one")
    engine.gate = asyncio.Event()
    running = asyncio.create_task(client.chat(model="sql"))
    while not engine.requests:
        await asyncio.sleep(0.002)
    await unload(client, "sql")
    await load(client, "sql", "sql")
    engine.gate.set()
    await running
    await settle()
    assert len(engine.loaded) == 1


async def test_serving_goes_on_while_an_adapter_loads(client, engine):
    engine.load_gate = asyncio.Event()
    loading = asyncio.create_task(load(client, "sql", "sql"))
    await asyncio.sleep(0.01)
    assert (await client.chat(max_tokens=1)).status == 200
    assert (await client.chat(model="sql", max_tokens=1)).status == 404
    engine.load_gate.set()
    assert (await loading).status == 200
    assert (await client.chat(model="sql", max_tokens=1)).status == 200


async def test_the_operators_own_paths_are_not_confined(client, engine, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "adapter_config.json").write_text("{}")
    service = client.app.state.service
    record, replaced = await service.adapters.load("own", str(outside), confined=False)
    assert (record.path, replaced) == (str(outside), False)
