"""Adapters below --adapter-dir: named by their folders, loaded by the first request."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from turret_server.errors import Unprocessable


@pytest.fixture
def client(make_client, settings):
    return make_client(adapter_dirs=settings.adapter_roots)


async def ids(client):
    return [card["id"] for card in (await client.get("/v1/models")).json["data"]]


async def test_the_first_request_loads_it(client, engine, settings):
    assert await ids(client) == ["demo", "smollm2", "dates", "json", "sql"]
    assert not engine.loaded
    card = (await client.get("/v1/adapters/sql")).json
    assert (card["tier"], card["kind"], card["digest"]) == ("shelf", None, None)
    answer = await client.chat(model="sql", max_tokens=1)
    assert (answer.status, answer.json["model"]) == (200, "sql")
    assert list(engine.loaded.values()) == [str(settings.adapter_roots[0] / "sql")]
    assert [use.digest for use in engine.requests[0].adapters] == list(engine.loaded)
    card = (await client.get("/v1/adapters/sql")).json
    assert (card["tier"], card["kind"], card["requests"]) == ("disk", "lora", 0)
    assert card["last_used"] is not None
    assert sorted(await ids(client)) == ["dates", "demo", "json", "smollm2", "sql"]


async def test_parts_of_expressions_and_lists_are_loaded(client, engine):
    answer = await client.chat(
        model="sql:0.5+json", adapters=[{"name": "dates", "weight": 2}], max_tokens=1
    )
    assert answer.status == 200
    assert len(engine.loaded) == 3


async def test_many_at_once_load_it_once(client, engine):
    engine.load_gate = asyncio.Event()
    requests = [asyncio.create_task(client.chat(model="sql", max_tokens=1)) for _ in range(5)]
    leave = asyncio.Event()
    gone = asyncio.create_task(
        client.post("/v1/chat/completions", {"model": "sql", "messages": []}, leave=leave)
    )
    await asyncio.sleep(0.01)
    leave.set()
    engine.load_gate.set()
    assert [(await request).status for request in requests] == [200] * 5
    await gone
    assert len(engine.loaded) == 1


async def test_a_folder_that_appears_is_served(client, settings):
    assert (await client.chat(model="late")).status == 404
    folder = settings.adapter_roots[0] / "late"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    assert (await client.chat(model="late", max_tokens=1)).status == 200


async def test_a_folder_that_changes_is_read_again(client, engine, settings):
    for text in ("old", "new content"):
        (settings.adapter_roots[0] / "sql" / "adapter_config.json").write_text(text)
        assert (await client.chat(model="sql", max_tokens=1)).status == 200
        assert (await client.chat(model="sql", max_tokens=1)).status == 200
    first, second = (request.adapters[0].digest for request in engine.requests[1:3])
    assert first != second
    assert list(engine.loaded) == [second]


async def test_a_folder_that_is_removed_is_served_no_longer(client, engine, settings):
    for name in ("sql", "json"):
        assert (await client.chat(model=name, max_tokens=1)).status == 200
        shutil.rmtree(settings.adapter_roots[0] / name)
    assert (await client.chat(model="sql", max_tokens=1)).status == 404
    assert await ids(client) == ["demo", "smollm2", "dates"]
    assert (await client.get("/v1/adapters/json")).status == 404
    assert engine.loaded == {}


async def test_what_cannot_be_served_is_refused_every_time(client, engine):
    engine.load_error = Unprocessable("adapter 'sql' was not loaded", "it is another base's")
    for _ in range(2):
        answer = await client.chat(model="sql", max_tokens=1)
        assert (answer.status, answer.json["error"]["why"]) == (422, "it is another base's")
    engine.load_error = None
    assert (await client.chat(model="sql", max_tokens=1)).status == 200


async def test_an_engine_that_restarted_gets_it_with_the_next_request(client, engine):
    await client.chat(model="sql", max_tokens=1)
    engine.loaded.clear()
    engine.restarts += 1
    assert (await client.chat(model="sql", max_tokens=1)).status == 200
    assert len(engine.loaded) == 1


async def test_reading_about_it_loads_nothing(client, engine):
    assert (await client.post("/tokenize", {"model": "sql", "prompt": "Hi"})).status == 200
    assert (await client.get("/v1/models/sql")).json["id"] == "sql"
    listed = (await client.get("/v1/adapters")).json["data"]
    assert [card["id"] for card in listed] == ["dates", "json", "sql"]
    assert not engine.loaded


async def test_a_name_that_is_served_goes_before_the_shelf(make_client, settings, engine):
    client = make_client(adapter_dirs=settings.adapter_roots, recipes={"sql": "json"})
    assert (await client.chat(model="sql", max_tokens=1)).status == 200
    assert list(engine.loaded.values()) == [str(settings.adapter_roots[0] / "json")]


async def test_a_load_from_the_shelf_does_not_undo_a_put_that_overtook_it(
    client, engine, settings, monkeypatch
):
    root, load_adapter, loading = settings.adapter_roots[0], engine.load_adapter, asyncio.Event()

    async def load(*args, **options):
        loading.set()
        return await load_adapter(*args, **options)

    monkeypatch.setattr(engine, "load_adapter", load)
    engine.load_gate = asyncio.Event()
    body = {"path": str(root / "json")}
    put = asyncio.create_task(client.post("/v1/adapters/sql", body, method="PUT"))
    await loading.wait()
    asked = asyncio.create_task(client.chat(model="sql", max_tokens=1))
    while engine.requests == [] and not client.app.state.service.adapters._shelved._fetches:
        await asyncio.sleep(0.002)
    engine.load_gate.set()
    assert ((await put).status, (await asked).status) == (201, 200)
    assert (await client.get("/v1/adapters/sql")).json["path"] == str(root / "json")
    assert list(engine.loaded.values()) == [str(root / "json")]


async def test_what_is_unloaded_as_soon_as_it_is_loaded_does_not_haunt_the_list(
    client, engine, settings, monkeypatch
):
    """It is unloaded while what it replaced leaves the engine; then its folder is removed."""
    folder = settings.adapter_roots[0] / "sql"
    await client.chat(model="sql", max_tokens=1)
    (folder / "adapter_config.json").write_text("changed")
    leaving, goes_on, unload_adapter = asyncio.Event(), asyncio.Event(), engine.unload_adapter

    async def unload(digest):
        leaving.set()
        await goes_on.wait()
        await unload_adapter(digest)

    monkeypatch.setattr(engine, "unload_adapter", unload)
    asked = asyncio.create_task(client.chat(model="sql", max_tokens=1))
    await leaving.wait()
    deleted = asyncio.create_task(client.post("/v1/adapters/sql", b"", method="DELETE"))
    while client.app.state.service.catalog.get("sql") is not None:
        await asyncio.sleep(0.002)
    shutil.rmtree(folder)
    goes_on.set()
    assert ((await deleted).status, (await asked).status) == (200, 404)
    assert "sql" not in await ids(client)
    assert engine.loaded == {}
