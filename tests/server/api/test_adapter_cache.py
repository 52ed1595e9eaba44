"""Fetched adapters leave the disk when they need not be read again, and not before."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.server.sources.test_archive import zipped

from turret_server.errors import EngineUnavailable, Unprocessable
from turret_server.sources.cached import shrink


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TURRET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def client(make_client, settings):
    for name in ("a", "b"):
        config = json.dumps({"name": name}).encode()
        files = {"adapter_config.json": config, "adapter_model.safetensors": bytes(8)}
        zipped(settings.adapter_roots[0] / f"{name}.zip", files)
    return make_client(adapter_cache_bytes=0)  # whatever is not in use goes


async def put(client, name, **body):
    return await client.post(f"/v1/adapters/{name}", body, method="PUT")


async def delete(client, name):
    assert (await client.post(f"/v1/adapters/{name}", b"", method="DELETE")).status == 200


def is_there(path):
    shrink(0)
    return Path(path).exists()


async def test_what_is_served_stays(client):
    first = (await put(client, "x", path="a.zip")).json["path"]
    assert (await put(client, "same", path="a.zip")).json["path"] == first
    second = (await put(client, "x", path="b.zip")).json["path"]
    assert (is_there(first), is_there(second)) == (True, True)
    await delete(client, "same")
    assert (is_there(first), is_there(second)) == (False, True)
    assert (await put(client, "x", path="a.zip")).json["path"] == first
    assert (is_there(first), is_there(second)) == (True, False)


async def test_a_request_in_flight_keeps_what_it_uses(client, engine):
    path = (await put(client, "x", path="a.zip")).json["path"]
    engine.gate = asyncio.Event()
    answer = asyncio.create_task(client.chat(model="x", max_tokens=1))
    while not engine.requests:
        await asyncio.sleep(0.001)
    await delete(client, "x")
    assert is_there(path)
    engine.gate.set()
    assert (await answer).status == 200
    await asyncio.sleep(0.01)
    assert not is_there(path)


async def test_a_derived_adapter_keeps_what_it_was_made_of(client):
    path = (await put(client, "x", path="a.zip")).json["path"]
    assert (await put(client, "made", derive={"method": "sum", "sources": ["x"]})).status == 201
    await delete(client, "x")
    assert is_there(path)
    await delete(client, "made")
    assert not is_there(path)


@pytest.mark.parametrize("how", ["refused", "another digest", "not pinned", "name taken"])
async def test_what_was_not_loaded_does_not_stay(client, engine, tmp_path, how):
    body: dict[str, object] = {"path": "a.zip"}
    if how == "refused":
        engine.load_error = Unprocessable("no", "it does not fit")
    elif how == "another digest":
        body["digest"] = "0" * 64
    elif how == "not pinned":
        engine.num_slots = 0
        body["pin"] = True
    name = "demo" if how == "name taken" else "x"
    assert (await put(client, name, **body)).status >= 400
    shrink(0)
    assert [p for p in (tmp_path / "cache" / "adapters").glob("*") if p.name[0] != "."] == []


async def test_an_engine_that_is_away_keeps_nothing(client, engine, monkeypatch):
    path = (await put(client, "x", path="a.zip")).json["path"]

    async def away(digest):
        raise EngineUnavailable("away", "it restarts")

    monkeypatch.setattr(engine, "unload_adapter", away)
    await delete(client, "x")
    assert not is_there(path)
