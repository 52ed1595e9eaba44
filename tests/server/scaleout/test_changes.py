"""Run-time loads: what a request changes, what the log keeps, and what replicas make of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from tests.server.api.conftest import FakeEngine, RawClient

from turret_server.api.app import create_app
from turret_server.api.settings import ApiSettings
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.scaleout.changes import Change, ChangeLog, change_in
from turret_server.scaleout.follower import Follower
from turret_server.scaleout.wire import Forwarded
from turret_server.tenancy.administration import Administration
from turret_server.tenancy.database import Database
from turret_server.tenancy.service import Tenancy


def asked(method: str, path: str, body: Any = None) -> Forwarded:
    data = b"" if body is None else json.dumps(body).encode()
    return Forwarded(method=method, path=path.encode(), body=data)


@pytest.mark.parametrize(
    ("request_", "change"),
    [
        (
            asked("PUT", "/v1/adapters/a%20b", {"path": "x", "pin": True, "other": 1}),
            Change(name="a b", body={"path": "x", "pin": True}),
        ),
        (asked("DELETE", "/v1/adapters/a"), Change(name="a")),
        (asked("DELETE", "/v1/%61dapters/a"), Change(name="a")),
        (
            asked("POST", "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "x"}),
            Change(name="a", body={"path": "x"}),
        ),
        (asked("POST", "/v1/unload_lora_adapter", {"lora_name": "a"}), Change(name="a")),
        (asked("PUT", "/v1/adapters/a", [1]), Change(name="a", body={})),
        (asked("GET", "/v1/adapters/a"), None),
        (asked("POST", "/v1/completions", {"model": "a"}), None),
    ],
)
def test_what_a_request_changes(request_, change):
    assert change_in(request_) == change


def test_the_log_keeps_the_last_change_of_a_name():
    log = ChangeLog()
    for body in ({"path": "1"}, {"path": "2"}):
        log.put(Change(name="a", body=body))
    log.put(Change(name="a", owner="acme", body={"path": "3"}))
    _, version, changes = log.since("", 0)
    assert version == 3
    assert [change.body for change in changes] == [{"path": "2"}, {"path": "3"}]


def test_a_pin_keeps_where_the_adapter_came_from():
    log = ChangeLog()
    log.put(Change(name="a", body={"path": "1", "digest": "d"}, digest="d"))
    log.put(Change(name="a", body={"pin": True}, digest="d"))
    assert log.since("", 0)[2][0].body == {"path": "1", "digest": "d", "pin": True}


def test_only_what_is_new():
    log = ChangeLog()
    log.put(Change(name="a"))
    epoch, version, _ = log.since("", 0)
    assert log.since(epoch, version) == (epoch, version, [])
    log.put(Change(name="b"))
    assert [change.name for change in log.since(epoch, version)[2]] == ["b"]
    assert len(log.since("of another log", version)[2]) == 2


def test_names_that_come_and_go_are_forgotten(monkeypatch):
    monkeypatch.setattr("turret_server.scaleout.changes._MAX_REMOVED", 10)
    log = ChangeLog()
    log.put(Change(name="kept", body={"path": "x"}))
    for i in range(100):
        log.put(Change(name=f"n{i}", body={"path": "x"}))
        log.put(Change(name=f"n{i}"))
    names = [change.name for change in log.since("", 0)[2]]
    assert names == ["kept", *(f"n{i}" for i in range(90, 100))]


class Remote:
    """A log that another process holds; `log` may be replaced."""

    def __init__(self) -> None:
        self.log = ChangeLog()

    async def put(self, change):
        self.log.put(change)

    async def since(self, epoch, version):
        return self.log.since(epoch, version)

    async def restore(self, changes):
        self.log.restore(changes)


class Side:
    """One replica: an app and its follower."""

    def __init__(self, tokenizer: Tokenizer, settings: ApiSettings, remote: Remote) -> None:
        self.engine = FakeEngine(tokenizer)
        self.client = RawClient(create_app(self.engine, tokenizer, settings))
        self.service = self.client.app.state.service
        self.follower = Follower(self.service, remote)

    async def change(self, method: str, path: str, body: Any = None) -> None:
        """A client's request, then what the replica publishes."""
        request = asked(method, path, body)
        answer = await self.client.post(path, request.body, method=method)
        assert answer.status < 300, answer.body
        change = change_in(request)
        assert change is not None
        await self.follower.publish(change, None)

    @property
    def names(self) -> list[str]:
        return self.service.catalog.names()


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def sides(tokenizer, settings, remote) -> list[Side]:
    return [Side(tokenizer, settings, remote) for _ in range(2)]


async def test_a_load_reaches_the_other_replica_and_later_ones(sides, tokenizer, settings, remote):
    first, second = sides
    await first.change("PUT", "/v1/adapters/mine", {"path": "sql", "pin": True})
    assert await second.follower.sync() == {}
    late = Side(tokenizer, settings, remote)
    assert await late.follower.sync() == {}
    for side in (second, late):
        record = side.service.catalog.get("mine")
        assert record.digest == first.service.catalog.get("mine").digest
        assert record.pinned


async def test_an_unload_reaches_it_too(sides):
    first, second = sides
    await first.change("PUT", "/v1/adapters/mine", {"path": "sql"})
    await second.follower.sync()
    await second.change("DELETE", "/v1/adapters/mine")
    await first.follower.sync()
    assert first.names == second.names == []


async def test_the_replica_that_began_does_nothing_twice(sides, monkeypatch):
    first, _ = sides
    await first.change("PUT", "/v1/adapters/mine", {"path": "sql"})
    monkeypatch.setattr(first.engine, "load_adapter", None)
    assert await first.follower.sync() == {}


async def test_two_changes_of_a_name_end_the_same_everywhere(sides):
    first, second = sides
    await first.change("PUT", "/v1/adapters/mine", {"path": "sql"})
    await second.change("PUT", "/v1/adapters/mine", {"path": "dates"})
    for side in sides:
        await side.follower.sync()
        assert side.service.catalog.get("mine").path.endswith("dates")


async def test_other_content_is_refused_and_tried_again(sides, settings):
    """The folder changed between the first replica's load and the second's."""
    first, second = sides
    await first.change("PUT", "/v1/adapters/mine", {"path": "sql"})
    file = settings.adapter_roots[0] / "sql" / "adapter_config.json"
    before = file.read_text()
    file.write_text('{"name": "other"}')
    assert list(await second.follower.sync()) == ["mine"]
    assert second.names == []
    file.write_text(before)
    assert await second.follower.sync() == {}
    assert second.names == ["mine"]


async def test_a_change_that_fails_unforeseen_keeps_no_later_one_back(sides, monkeypatch):
    first, second = sides
    await first.change("PUT", "/v1/adapters/bad", {"path": "sql"})
    await first.change("PUT", "/v1/adapters/good", {"path": "dates"})
    load = second.engine.load_adapter

    async def fail(name, *args, **options):
        if name == "bad":
            raise OSError("a fault")
        return await load(name, *args, **options)

    monkeypatch.setattr(second.engine, "load_adapter", fail)
    assert list(await second.follower.sync()) == ["bad"]
    assert second.names == ["good"]
    monkeypatch.setattr(second.engine, "load_adapter", load)
    assert await second.follower.sync() == {}
    assert sorted(second.names) == ["bad", "good"]


async def test_a_log_that_was_lost_is_filled_again(sides, remote):
    first, second = sides
    await first.change("PUT", "/v1/adapters/mine", {"path": "sql"})
    await first.follower.sync()
    remote.log = ChangeLog()
    await first.follower.sync()
    await second.follower.sync()
    assert second.names == ["mine"]


async def test_syncs_at_once_do_the_work_once(sides):
    first, second = sides
    await first.change("PUT", "/v1/adapters/mine", {"path": "sql"})
    assert await asyncio.gather(*(second.follower.sync() for _ in range(5))) == [{}] * 5
    assert second.names == ["mine"]


async def test_an_adapter_of_a_tenant_stays_its_own(tokenizer, settings, remote, tmp_path):
    """A change of a tenant is done for this tenant, without its key; one that is gone is passed."""
    database = f"{tmp_path}/turret.db"
    Administration(Database(database), "test").create_tenant("acme")
    (settings.adapter_roots[0] / "acme").mkdir()
    (settings.adapter_roots[0] / "sql").rename(settings.adapter_roots[0] / "acme" / "sql")
    side = Side(tokenizer, replace(settings, tenancy=Tenancy({}, Database(database))), remote)
    for owner in ("acme", "gone"):
        remote.log.put(Change(name="mine", owner=owner, body={"path": "sql"}))
    assert await side.follower.sync() == {}
    assert side.names == ["acme/mine"]
