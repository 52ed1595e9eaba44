"""Adapters that an operator pins, and the digests that a load may ask for."""

from __future__ import annotations

import asyncio

import pytest

from turret_server.errors import EngineUnavailable


async def put(client, name, **body):
    return await client.post(f"/v1/adapters/{name}", body, method="PUT")


async def delete(client, name):
    return await client.post(f"/v1/adapters/{name}", b"", method="DELETE")


async def digest_of(client, name):
    return (await client.get(f"/v1/adapters/{name}")).json["digest"]


async def test_pinned_from_the_load_until_it_is_unpinned(client, engine):
    answer = await put(client, "sql", path="sql", pin=True)
    assert (answer.status, answer.json["pinned"]) == (201, True)
    assert engine.held == [answer.json["digest"]]
    answer = await put(client, "sql", pin=False)
    assert (answer.status, answer.json["pinned"], engine.held) == (200, False, [])
    answer = await put(client, "sql", pin=True)
    assert (answer.json["pinned"], engine.held) == (True, [answer.json["digest"]])
    assert (await delete(client, "sql")).status == 200
    assert (engine.held, engine.loaded) == ([], {})


async def test_vllms_route_pins_too(client, engine):
    body = {"lora_name": "sql", "lora_path": "sql", "pin": True}
    assert (await client.post("/v1/load_lora_adapter", body)).status == 200
    assert engine.held == list(engine.loaded)


async def test_a_replacement_stays_pinned(client, engine):
    await put(client, "sql", path="sql", pin=True)
    engine.num_slots = 1  # the old content makes room for the new one
    answer = await put(client, "sql", path="json")
    assert (answer.status, answer.json["pinned"]) == (200, True)
    assert engine.held == [answer.json["digest"]] == list(engine.loaded)


async def test_more_than_fit_are_refused_and_nothing_remains(client, engine):
    for name in ("sql", "json"):
        await put(client, name, path=name, pin=True)
    before = list(engine.held)
    answer = await put(client, "dates", path="dates", pin=True)
    assert (answer.status, answer.json["error"]["param"]) == (422, "pin")
    assert "2 slots" in answer.json["error"]["why"]
    assert (await client.get("/v1/adapters/dates")).status == 404
    assert sorted(engine.loaded) == engine.held == before
    await put(client, "dates", path="dates")
    answer = await put(client, "dates", pin=True)
    assert (answer.status, answer.json["error"]["param"]) == (422, "pin")
    assert (await client.get("/v1/adapters/dates")).json["pinned"] is False
    await delete(client, "sql")
    assert (await put(client, "dates", pin=True)).status == 200


async def test_one_content_under_two_names_is_held_for_the_pinned_one(client, engine):
    await put(client, "a", path="sql", pin=True)
    await put(client, "b", path="sql")
    held = [await digest_of(client, "b")]
    assert engine.held == held
    await delete(client, "a")
    assert (engine.held, list(engine.loaded)) == ([], held)


async def test_an_adapter_on_the_shelf_is_loaded_and_pinned(make_client, settings, engine):
    client = make_client(adapter_dirs=settings.adapter_roots)
    answer = await put(client, "sql", pin=True)
    assert (answer.status, answer.json["tier"], answer.json["pinned"]) == (200, "disk", True)
    assert engine.held == list(engine.loaded) == engine.kept


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "path"),
        ({"digest": "0" * 64}, 400, "path"),
        ({"digest": "0" * 64, "pin": True}, 400, "path"),
        ({"pin": True}, 404, "name"),
        ({"path": "sql", "digest": "0" * 63}, 400, "digest"),
    ],
)
async def test_bodies_that_are_refused(client, body, status, param):
    answer = await put(client, "sql", **body)
    assert (answer.status, answer.json["error"]["param"]) == (status, param)


async def test_a_digest_is_compared(client, engine):
    digest = (await put(client, "sql", path="sql")).json["digest"]
    assert (await put(client, "b", path="sql", digest=f"sha256:{digest}")).status == 201
    answer = await put(client, "b", path="json", digest=digest)
    assert answer.status == 422
    assert digest in answer.json["error"]["why"]
    assert await digest_of(client, "b") == digest


async def test_an_engine_that_is_away_pins_nothing(client, engine, monkeypatch):
    await put(client, "sql", path="sql")

    async def fail(digests):
        raise EngineUnavailable("the engine is not available")

    monkeypatch.setattr(engine, "hold_adapters", fail)
    assert (await put(client, "sql", pin=True)).status == 503
    assert (await client.get("/v1/adapters/sql")).json["pinned"] is False


async def test_what_is_unloaded_while_no_engine_is_up_does_not_come_back(
    client, engine, monkeypatch
):
    """Its pin cannot be taken away then; the next engine must not get it all the same."""
    await put(client, "sql", path="sql", pin=True)
    unloaded = []

    async def hold(digests):
        raise EngineUnavailable("the engine is not available")

    async def unload(digest):
        unloaded.append(digest)
        raise EngineUnavailable("the engine is not available")

    monkeypatch.setattr(engine, "hold_adapters", hold)
    monkeypatch.setattr(engine, "unload_adapter", unload)
    assert (await delete(client, "sql")).status == 200
    assert unloaded == list(engine.loaded)


async def test_a_pin_does_not_bring_back_what_is_unloaded_meanwhile(client, engine, monkeypatch):
    await put(client, "sql", path="sql")
    holding, goes_on, hold = asyncio.Event(), asyncio.Event(), engine.hold_adapters

    async def slow(digests):
        holding.set()
        await goes_on.wait()
        await hold(digests)

    monkeypatch.setattr(engine, "hold_adapters", slow)
    pinning = asyncio.create_task(put(client, "sql", pin=True))
    await holding.wait()
    deleting = asyncio.create_task(delete(client, "sql"))
    while (await client.get("/v1/adapters/sql")).status == 200:
        await asyncio.sleep(0.002)
    goes_on.set()
    assert ((await pinning).status, (await deleting).status) == (404, 200)
    assert (await client.get("/v1/adapters/sql")).status == 404
    assert (engine.held, engine.loaded) == ([], {})
