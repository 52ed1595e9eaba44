from __future__ import annotations

import errno
import os

import pytest

import turret_server
from turret_server.tenancy.database import Database, DatabaseDown
from turret_server.tenancy.service import Tenancy, static_keys


async def test_a_server_that_serves(client):
    assert (await client.get("/health")).json == {"status": "ok"}
    assert (await client.get("/ping")).json == {"status": "ok"}
    assert (await client.get("/ready")).json == {"status": "ready", "reasons": {}}
    assert (await client.get("/version")).json == {"version": turret_server.__version__}


async def test_a_server_whose_engine_is_down(client, engine):
    engine.ready = None
    for path in ("/health", "/ping", "/ready"):
        answer = await client.get(path)
        assert answer.status == 503
        assert "retry-after" in answer.headers
    for path in ("/version", "/metrics", "/v1/models", "/tokenizer_info"):
        assert (await client.get(path)).status == 200


async def test_every_reason_is_told(client, engine):
    engine.ready = None
    client.app.state.service.admission.draining = True
    answer = await client.get("/ready")
    assert answer.json["status"] == "not ready"
    assert answer.json["reasons"].keys() == {"engine", "draining"}
    assert answer.json["error"]["code"] == "engine_unavailable"


@pytest.fixture
def tenancy(tmp_path):
    database = Database(str(tmp_path / "turret.db"))
    yield Tenancy(static_keys(["sk-1"]), database, tmp_path / "usage")
    database.close()


async def test_a_disk_that_is_full_keeps_requests_away_until_it_is_not(
    make_client, tenancy, monkeypatch
):
    client, real = make_client(tenancy=tenancy), os.fdatasync

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("turret_server.tenancy.journal.os.fdatasync", full)
    body = {"prompt": "Hi", "max_tokens": 1}
    refused = await client.post("/v1/completions", body, {"authorization": "Bearer sk-1"})
    assert (refused.status, refused.json["error"]["code"]) == (503, "usage_not_recorded")
    for _ in range(2):  # as long as it lasts
        answer = await client.get("/ready")
        assert answer.status == 503
        assert "No space left" in answer.json["reasons"]["usage"]
    assert (await client.get("/health")).status == 200
    monkeypatch.setattr("turret_server.tenancy.journal.os.fdatasync", real)
    assert (await client.get("/ready")).json == {"status": "ready", "reasons": {}}


async def test_without_its_database_a_server_is_ready_and_says_so(
    make_client, tenancy, monkeypatch
):
    def fail():
        raise DatabaseDown("the database does not answer", "10.0.0.5 refused it")

    client = make_client(tenancy=tenancy)
    monkeypatch.setattr(tenancy.database, "revision", fail)
    with pytest.raises(DatabaseDown):
        await tenancy.refresh()
    answer = await client.get("/ready")
    assert answer.status == 200
    assert "does not answer" in answer.json["reasons"]["database"]
    assert "10.0.0.5" not in answer.body.decode()
    monkeypatch.undo()
    await tenancy.refresh()
    assert (await client.get("/ready")).json["reasons"] == {}
