"""Tenants, keys and grants: every change holds, is audited, and is refused where it must be."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from turret_server.errors import BadRequest, Conflict, NotFound, StartupError
from turret_server.tenancy import directory as directory_module
from turret_server.tenancy import schema
from turret_server.tenancy.administration import Administration
from turret_server.tenancy.database import Database, DatabaseDown
from turret_server.tenancy.directory import Directory
from turret_server.tenancy.principal import Quotas, Scope, key_prefix


class Clock:
    """Unix seconds that tests move."""

    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


def test_a_key_finds_its_tenant(database, admin):
    admin.create_tenant("acme", weight=2.0, quotas=Quotas(requests_per_minute=60))
    key = admin.create_key("acme", scopes=[Scope.INFER, Scope.ADAPTERS])
    admin.grant("acme", ["sql", "dates"])
    found = Directory(database).find(key)
    assert found is not None
    assert (found.tenant.name, found.tenant.weight) == ("acme", 2.0)
    assert found.tenant.quotas == Quotas(requests_per_minute=60)
    assert found.key == key_prefix(key)
    assert found.has(Scope.ADAPTERS)
    assert not found.has(Scope.ADMIN)
    assert found.tenant.may_use("sql")
    assert not found.tenant.may_use("triage")


def test_an_admin_may_do_everything_and_a_star_grants_everything(database, admin):
    admin.create_tenant("acme")
    admin.grant("acme", ["*"])
    key = admin.create_key("acme", scopes=[Scope.ADMIN])
    found = Directory(database).find(key)
    assert all(found.has(scope) for scope in Scope)
    assert found.tenant.may_use("anything")


def test_keys_are_stored_nowhere(database, admin):
    admin.create_tenant("acme")
    keys = [admin.create_key("acme") for _ in range(3)]
    assert len(set(keys)) == 3
    with database.begin() as connection:
        tables = schema.metadata.sorted_tables
        stored = repr([list(connection.execute(select(table))) for table in tables])
    for key in keys:
        assert key_prefix(key) in stored
        assert key not in stored


@pytest.mark.parametrize("key", ["", "tk-", "tk-unknown", "x" * 10_000, "tk-\0", "schlüssel"])
def test_an_unknown_key_finds_nobody(database, admin, key):
    admin.create_tenant("acme")
    admin.create_key("acme")
    assert Directory(database).find(key) is None


def test_a_key_ends_when_it_expires(database, admin):
    clock = Clock()
    admin.create_tenant("acme")
    key = admin.create_key("acme", lifetime_s=60)
    directory = Directory(database, clock)
    assert directory.find(key)
    clock.ahead = 61
    assert directory.find(key) is None


def test_a_revoked_key_is_gone_with_the_next_refresh(database, admin):
    admin.create_tenant("acme")
    key, other = admin.create_key("acme"), admin.create_key("acme")
    directory = Directory(database)
    admin.revoke_key(key_prefix(key))
    assert directory.refresh()
    assert directory.find(key) is None
    assert directory.find(other)
    assert not directory.refresh()
    with pytest.raises(NotFound, match="no valid key"):
        admin.revoke_key(key_prefix(key))


def test_a_rotated_key_overlaps_with_the_new_one(database, admin):
    clock = Clock()
    admin.create_tenant("acme")
    old = admin.create_key("acme", label="ci", scopes=[Scope.ADAPTERS], lifetime_s=86_400)
    new = admin.rotate_key(key_prefix(old), overlap_s=600)
    directory = Directory(database, clock)
    assert directory.find(old)
    assert directory.find(new).scopes == {Scope.ADAPTERS}
    clock.ahead = 601
    assert directory.find(old) is None
    assert directory.find(new)
    assert [record.label for record in admin.keys("acme")] == ["ci", "ci"]


def test_a_key_is_rotated_once(admin):
    """What came of it would end with the overlap, though the key was to live for ever."""
    admin.create_tenant("acme")
    old = key_prefix(admin.create_key("acme"))
    new = key_prefix(admin.rotate_key(old, overlap_s=600))
    with pytest.raises(Conflict, match=f"'{new}' has taken its place"):
        admin.rotate_key(old)
    admin.rotate_key(new)
    assert [record.expires_at is None for record in admin.keys("acme")] == [False, False, True]


@pytest.mark.parametrize("overlap_s", [-1, 1 << 40])
def test_overlaps_that_are_refused(admin, overlap_s):
    admin.create_tenant("acme")
    key = admin.create_key("acme")
    with pytest.raises(BadRequest, match="an overlap is between"):
        admin.rotate_key(key_prefix(key), overlap_s=overlap_s)


def test_admins_who_change_the_same_at_once_wait_for_each_other(database, admin):
    """Each would else find its change undone, or the database at fault."""

    def act(number):
        try:
            admin.create_tenant("acme")
        except Conflict:
            return "conflict"
        return "made"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(act, range(8))) == ["conflict"] * 7 + ["made"]
        list(pool.map(lambda _: admin.grant("acme", ["sql"]), range(8)))
    assert [row["action"] for row in admin.audit()] == ["grant", "create tenant"]


def test_a_tenant_that_is_made_while_the_tables_are_read(database, admin, monkeypatch):
    directory = Directory(database)
    read = directory_module.read_tenants

    def read_then_grow(connection):
        found = read(connection)
        monkeypatch.undo()
        admin.create_tenant("acme")
        admin.create_key("acme")
        return found

    monkeypatch.setattr(directory_module, "read_tenants", read_then_grow)
    admin.create_tenant("other")
    directory.refresh()
    assert directory.refresh()
    assert directory.tenants.keys() == {"other", "acme"}


def test_a_slow_reader_does_not_bring_a_revoked_key_back(database, admin, monkeypatch):
    admin.create_tenant("acme")
    key = admin.create_key("acme")
    directory = Directory(database)
    admin.grant("acme", ["sql"])  # there is something to read
    read, has_read, goes_on = directory_module.read_tenants, threading.Event(), threading.Event()

    def read_slowly(connection):
        monkeypatch.setattr(directory_module, "read_tenants", read)
        found = read(connection)
        has_read.set()
        goes_on.wait(0.5)
        return found

    monkeypatch.setattr(directory_module, "read_tenants", read_slowly)
    slow = threading.Thread(target=directory.refresh)
    slow.start()
    has_read.wait()
    admin.revoke_key(key_prefix(key))
    directory.refresh()
    goes_on.set()
    slow.join()
    assert directory.find(key) is None


def test_text_that_the_database_cannot_hold_is_the_callers_mistake(database, admin):
    admin.create_tenant("acme")
    if database.is_sqlite:
        assert admin.keys("a\0") == []
        return
    for act in (
        lambda: admin.keys("a\0"),
        lambda: admin.usage(tenant="a\0"),
        lambda: admin.create_key("acme", label="a\0"),
        lambda: admin.grant("a\0", ["sql"]),
        lambda: admin.revoke_key("a\0"),
    ):
        with pytest.raises(BadRequest, match="cannot hold"):
            act()


@pytest.mark.parametrize("day", ["yesterday", "2026-02-30", "20260228", "2026-W09-6", "1\0"])
def test_a_day_that_is_none(admin, day):
    for name in ("since", "until"):
        with pytest.raises(BadRequest, match="no day of the calendar"):
            admin.usage(**{name: day})


def test_quotas_and_grants_change_while_served(database, admin):
    admin.create_tenant("acme", quotas=Quotas(tokens_per_minute=10))
    admin.grant("acme", ["sql", "dates"])
    directory = Directory(database)
    admin.change_tenant("acme", weight=3, quotas={"tokens_per_minute": None, "pages_per_minute": 5})
    admin.withdraw("acme", ["sql", "never-granted"])
    directory.refresh()
    tenant = directory.tenants["acme"]
    assert tenant.weight == 3
    assert tenant.quotas == Quotas(pages_per_minute=5)
    assert tenant.grants == {"dates"}


def test_every_change_is_audited_with_before_and_after(database, admin):
    admin.create_tenant("acme", quotas=Quotas(requests_per_minute=5))
    key = admin.create_key("acme")
    admin.change_tenant("acme", quotas={"requests_per_minute": 7})
    admin.grant("acme", ["sql"])
    admin.grant("acme", ["sql"])  # changes nothing
    admin.withdraw("acme", ["sql"])
    admin.revoke_key(key_prefix(key))
    found = [(row["action"], row["object"]) for row in reversed(admin.audit())]
    assert found == [
        ("create tenant", "acme"),
        ("create key", f"acme/{key_prefix(key)}"),
        ("change tenant", "acme"),
        ("grant", "acme"),
        ("withdraw", "acme"),
        ("revoke key", key_prefix(key)),
    ]
    (change,) = (row for row in admin.audit() if row["action"] == "change tenant")
    assert change["before"] == {"requests_per_minute": 5}
    assert change["after"] == {"requests_per_minute": 7}
    assert {row["actor"] for row in admin.audit()} == {"cli"}


@pytest.mark.parametrize("name", ["", "Acme", "a b", "-a", "a" * 65, "a/b", "'; drop table x;--"])
def test_names_that_tenants_cannot_have(admin, name):
    with pytest.raises(BadRequest, match="cannot name a tenant"):
        admin.create_tenant(name)


def test_what_is_not_there_or_there_already(admin):
    admin.create_tenant("acme")
    with pytest.raises(Conflict):
        admin.create_tenant("acme")
    for act in (
        lambda: admin.create_key("nobody"),
        lambda: admin.grant("nobody", ["sql"]),
        lambda: admin.withdraw("nobody", ["sql"]),
        lambda: admin.change_tenant("nobody", weight=1),
        lambda: admin.rotate_key("tk-nobody"),
    ):
        with pytest.raises(NotFound):
            act()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"weight": 0},
        {"weight": float("nan")},
        {"weight": 1e9},
        {"quotas": {"requests_per_minute": -1}},
        {"quotas": {"requests_per_minute": 1 << 60}},
        {"quotas": {"running_requests": 0}},
        {"quotas": {"wishes_per_minute": 3}},
    ],
    ids=str,
)
def test_values_that_are_refused(admin, change):
    admin.create_tenant("acme")
    with pytest.raises(BadRequest):
        admin.change_tenant("acme", **change)


@pytest.mark.parametrize(
    "settings",
    [{"scopes": []}, {"lifetime_s": 0}, {"lifetime_s": 1 << 40}, {"label": "x" * 65}],
    ids=str,
)
def test_keys_that_are_refused(admin, settings):
    admin.create_tenant("acme")
    with pytest.raises(BadRequest):
        admin.create_key("acme", **settings)
    assert admin.keys() == []


def test_a_grant_names_what_can_be_an_adapter(admin):
    admin.create_tenant("acme")
    with pytest.raises(BadRequest, match="names no adapter"):
        admin.grant("acme", ["a,b"])


def test_a_failed_transaction_leaves_nothing(database, admin):
    with pytest.raises(NotFound):
        admin.create_key("nobody")
    assert admin.audit() == []
    assert database.revision() == 0


def test_what_was_read_stays_good_when_the_database_is_gone(database, admin, monkeypatch):
    admin.create_tenant("acme")
    key = admin.create_key("acme")
    directory = Directory(database)

    def fail():
        raise DatabaseDown("the database does not answer", "it is down")

    monkeypatch.setattr(database, "revision", fail)
    with pytest.raises(DatabaseDown):
        directory.refresh()
    assert directory.find(key)


@pytest.mark.parametrize(
    "url",
    [
        "/nowhere/at/all/turret.db",
        "nonsense://x",
        "sqlite:////nowhere/at/all/turret.db",
        "oracle+unknown://x",
        "postgresql+psycopg://user:secret@127.0.0.1:1/turret",
    ],
)
def test_a_database_that_cannot_be_used(url):
    with pytest.raises(StartupError) as caught:
        Database(url)
    assert "secret" not in str(caught.value)


def test_older_tables_get_what_they_lack(database, admin, url):
    admin.create_tenant("acme", weight=2)
    with database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE turret_requests DROP COLUMN member_tokens")
        connection.exec_driver_sql(
            "INSERT INTO turret_requests VALUES"
            " ('a', '2025-11-28', 'acme', 'tk-1', 'sql', 10, 2, 5, 0, 'done')"
        )
        connection.exec_driver_sql("UPDATE turret_state SET version = 1")
    for _ in range(2):
        Database(url).close()
    (row,) = admin.usage()
    assert (row["prompt_tokens"], row["member_tokens"]) == (10, 0)
    assert [tenant.weight for tenant in admin.tenants()] == [2]


def test_tables_of_an_older_version_are_brought_up_to_date(database, admin, url):
    admin.create_tenant("acme", weight=2)
    with database.begin() as connection:
        for name in ("queued_requests", "queued_tokens", "running_requests"):
            connection.exec_driver_sql(f"ALTER TABLE turret_tenants DROP COLUMN {name}")
        connection.exec_driver_sql("UPDATE turret_state SET version = 1")
    for _ in range(2):
        newer = Database(url)
        Administration(newer, "cli").change_tenant("acme", quotas={"queued_tokens": 7})
        (tenant,) = Administration(newer, "cli").tenants()
        assert (tenant.weight, tenant.quotas) == (2, Quotas(queued_tokens=7))
        newer.close()


def test_tables_of_a_newer_version_are_left_alone(database, url):
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE turret_state SET version = 99")
    with pytest.raises(StartupError, match="version 99"):
        Database(url)
