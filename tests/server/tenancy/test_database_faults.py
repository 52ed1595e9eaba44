"""Databases that are killed, damaged, locked or read-only: serving and billing go on."""

from __future__ import annotations

import socket
import sqlite3
import time

import msgspec
import pytest

from turret_server.errors import StartupError
from turret_server.tenancy import database as database_module
from turret_server.tenancy.administration import Administration
from turret_server.tenancy.database import Database, DatabaseDown
from turret_server.tenancy.journal import Entry
from turret_server.tenancy.ledger import recover
from turret_server.tenancy.service import Tenancy

NUM_REQUESTS = 20


def entries(name):
    begin = Entry(name, "begin", int(time.time()), "acme", "tk-12345678", "sql", 10)
    end = msgspec.structs.replace(begin, event="end", completion_tokens=5, status="done")
    return begin, end


async def serve(tenancy, names):
    """Accept requests and end them, as the API does."""
    for name in names:
        begin, end = entries(name)
        await tenancy.ledger.begin(begin)
        await tenancy.ledger.end(end)


def billed(admin):
    return sum(row["requests"] for row in admin.usage())


async def test_postgresql_is_killed_under_load_and_comes_back(mortal_postgresql, tmp_path):
    database = Database(mortal_postgresql.url)
    admin = Administration(database, "cli")
    admin.create_tenant("acme")
    key = admin.create_key("acme")
    tenancy = Tenancy({}, database, tmp_path / "usage")
    await tenancy.refresh()
    await serve(tenancy, [f"before-{i}" for i in range(NUM_REQUESTS)])
    mortal_postgresql.kill()
    with pytest.raises(DatabaseDown):
        await tenancy.refresh()
    assert tenancy.is_database_down
    assert tenancy.find(key).tenant.name == "acme"
    await serve(tenancy, [f"meanwhile-{i}" for i in range(NUM_REQUESTS)])
    with pytest.raises(DatabaseDown):
        admin.create_tenant("beta")
    mortal_postgresql.start()
    await tenancy.refresh()
    assert not tenancy.is_database_down
    await tenancy.ledger.close()
    assert billed(admin) == 2 * NUM_REQUESTS
    database.close()


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setitem(database_module._POSTGRESQL, "connect_timeout", 2)  # its least
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StartupError, match="timeout"):
            Database(f"postgresql+psycopg://turret@127.0.0.1:{port}/turret")


def test_a_connection_may_be_silent_for_ten_seconds_or_as_the_url_says(mortal_postgresql):
    database = Database(f"{mortal_postgresql.url}&tcp_user_timeout=3000")
    with database.begin() as connection:
        used = connection.connection.dbapi_connection.info.get_parameters()
    assert 0 < int(used["keepalives_idle"]) + int(used["keepalives_count"]) <= 10  # s
    assert used["tcp_user_timeout"] == "3000"  # the URL's own
    database.close()


@pytest.fixture
def path(tmp_path):
    """A database with a tenant, a key and enough usage to fill pages."""
    path = tmp_path / "turret.db"
    database = Database(str(path))
    admin = Administration(database, "cli")
    for number in range(200):
        admin.create_tenant(f"tenant-{number}")
    admin.create_tenant("acme")
    database.close()
    return path


def damage(path, first):
    """Garbage in every page from `first` on."""
    raw = bytearray(path.read_bytes())
    size = int.from_bytes(raw[16:18], "big")
    assert len(raw) > 4 * size
    for page in range(first, len(raw) // size):
        raw[page * size : page * size + 200] = b"\xa5" * 200
    path.write_bytes(raw)


async def test_damaged_pages_lose_no_usage(path, tmp_path):
    """What was accepted waits in the journal for a database that has been mended."""
    sound = path.read_bytes()
    database = Database(str(path))
    tenancy = Tenancy({}, database, tmp_path / "usage")
    await tenancy.refresh()
    database.close()
    damage(path, 1)
    with pytest.raises(DatabaseDown):
        Administration(database, "cli").tenants()
    await serve(tenancy, ["a", "b"])
    await tenancy.ledger.close()
    database.close()
    for beside in tmp_path.glob("turret.db-*"):
        beside.unlink()
    path.write_bytes(sound)
    database = Database(str(path))
    recover(database, tmp_path / "usage")
    assert billed(Administration(database, "cli")) == 2
    database.close()


@pytest.mark.parametrize("first", [0, 1], ids=["header", "tables"])
def test_a_damaged_file_is_named_at_the_start(path, first):
    damage(path, first)
    with pytest.raises(StartupError, match=r"turret\.db"):
        Database(str(path))


async def test_a_locked_database_is_waited_for_and_then_down(path, tmp_path, monkeypatch):
    monkeypatch.setattr(database_module, "_WAIT_S", 0.2)
    database = Database(str(path))
    tenancy = Tenancy({}, database, tmp_path / "usage")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DatabaseDown, match="locked"):
        Administration(database, "cli").create_tenant("beta")
    await tenancy.refresh()  # readers go on
    await serve(tenancy, ["a"])
    other.execute("ROLLBACK")
    other.close()
    await tenancy.ledger.close()
    assert billed(Administration(database, "cli")) == 1
    database.close()


async def test_a_read_only_database_serves_and_keeps_usage(path, tmp_path):
    writable = str(path)
    database = Database(f"sqlite:///file:{path}?mode=ro&uri=true")
    tenancy = Tenancy({}, database, tmp_path / "usage")
    await tenancy.refresh()
    assert "acme" in tenancy.tenants
    with pytest.raises(DatabaseDown, match="readonly"):
        Administration(database, "cli").create_tenant("beta")
    await serve(tenancy, ["a"])
    await tenancy.ledger.close()
    database.close()
    database = Database(writable)
    recover(database, tmp_path / "usage")
    assert billed(Administration(database, "cli")) == 1
    database.close()
