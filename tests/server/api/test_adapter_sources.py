"""Loads from archives and URLs: beside everything else, in threads."""

from __future__ import annotations

import asyncio
import threading

import fsspec
import pytest
from tests.server.sources.test_archive import zipped


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TURRET_CACHE", str(tmp_path / "cache"))


FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}


async def put(client, name, path):
    return await client.post(f"/v1/adapters/{name}", {"path": path}, method="PUT")


async def test_an_archive_below_a_root(client, engine, settings, tmp_path):
    archive = zipped(settings.adapter_roots[0] / "sql.zip", FILES)
    answer = await put(client, "sql", "sql.zip")
    assert answer.status == 201
    assert answer.json["source"] == str(archive)
    assert answer.json["path"].startswith(str(tmp_path / "cache" / "adapters"))
    assert list(engine.loaded.values()) == [answer.json["path"]]
    (model,) = [m for m in (await client.get("/v1/models")).json["data"] if m["id"] == "sql"]
    assert model["root"] == str(archive)


async def test_a_hostile_archive_is_refused(client, engine, settings):
    zipped(settings.adapter_roots[0] / "sql.zip", FILES | {"../x.json": b""})
    answer = await put(client, "sql", "sql.zip")
    assert answer.status == 400
    assert "leads out" in answer.json["error"]["why"]
    assert engine.loaded == {}


async def test_an_allowed_url(make_client, engine):
    files = fsspec.filesystem("memory")
    for name, data in FILES.items():
        files.pipe(f"/loads/sql/{name}", data)
    client = make_client(adapter_remotes=("memory://loads",))
    answer = await put(client, "sql", "memory://loads/sql")
    assert (answer.status, answer.json["source"]) == (201, "memory://loads/sql")
    assert (await put(client, "b", "memory://others/sql")).status == 403
    answer = await put(client, "b", "memory://loads/nope")
    assert (answer.status, answer.json["error"]["what"]) == (
        404,
        "'memory://loads/nope' was not fetched",
    )


async def test_nobody_waits_for_a_download(make_client, engine, monkeypatch):
    client = make_client(adapter_remotes=("memory://loads",))
    fetched = threading.Event()

    def slow(url, limits):
        assert fetched.wait(20)
        raise OSError("enough")

    monkeypatch.setattr("turret_server.sources.remote.fetch", slow)
    loads = [asyncio.create_task(put(client, f"x{i}", "memory://loads/x")) for i in range(8)]
    await asyncio.sleep(0.01)
    assert (await put(client, "sql", "sql")).status == 201
    assert (await client.chat(model="sql", max_tokens=1)).status == 200
    assert not any(load.done() for load in loads)
    fetched.set()
    assert {(await load).status for load in loads} == {500}
