"""`turret tenants`, `turret keys`, `turret usage`, on one database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from turret_server.cli.main import _typer
from turret_server.errors import NotFound
from turret_server.tenancy.database import Database
from turret_server.tenancy.directory import Directory
from turret_server.tenancy.journal import Entry
from turret_server.tenancy.ledger import post
from turret_server.tenancy.principal import Quotas, Scope


@pytest.fixture
def turret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command; the environment names the database."""
    monkeypatch.setenv("TURRET_DATABASE", str(tmp_path / "turret.db"))

    def run(*args: str) -> Result:
        result = CliRunner().invoke(_typer, [*args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def directory(tmp_path: Path):
    """What a server would know now."""
    return lambda: Directory(Database(str(tmp_path / "turret.db")))


def test_from_nothing_to_a_key_that_works(turret, directory):
    turret("tenants", "create", "acme", "--requests-per-minute", "60", "--weight", "2")
    turret("tenants", "grant", "acme", "sql", "dates")
    result = turret("keys", "create", "acme", "--scope", "infer", "--scope", "adapters")
    key = result.stdout.strip()
    assert "keep it" in result.stderr
    found = directory().find(key)
    assert found.tenant.quotas == Quotas(requests_per_minute=60)
    assert found.tenant.weight == 2
    assert found.tenant.grants == {"sql", "dates"}
    assert found.scopes == {Scope.INFER, Scope.ADAPTERS}


def test_quotas_are_changed_and_taken_away(turret, directory):
    turret("tenants", "create", "acme", "--tokens-per-minute", "10", "--pages-per-minute", "3")
    turret("tenants", "change", "acme", "--tokens-per-minute", "-1", "--concurrent-requests", "4")
    quotas = directory().tenants["acme"].quotas
    assert quotas == Quotas(pages_per_minute=3, concurrent_requests=4)
    (row,) = json.loads(turret("tenants", "list", "--json").stdout)
    assert (row["tokens_per_minute"], row["concurrent_requests"]) == (None, 4)
    assert "acme" in turret("tenants", "list").stdout


def test_a_key_is_rotated_and_revoked_by_its_beginning(turret, directory):
    turret("tenants", "create", "acme")
    old = turret("keys", "create", "acme", "--label", "ci", "--days", "30").stdout.strip()
    new = turret("keys", "rotate", old[:11], "--overlap-h", "0").stdout.strip()
    assert directory().find(old) is None
    assert directory().find(new)
    turret("keys", "revoke", new[:11])
    assert directory().find(new) is None
    rows = json.loads(turret("keys", "list", "--json").stdout)
    assert [row["label"] for row in rows] == ["ci", "ci"]
    assert rows[1]["revoked_at"]
    assert old not in turret("keys", "list").stdout


def test_names_are_whole_where_the_output_is_narrow(turret, tmp_path, monkeypatch):
    """A key is revoked by what the list shows of it."""
    monkeypatch.setenv("COLUMNS", "80")
    turret("tenants", "create", "a-customer-with-a-long-name")
    for _ in range(2):
        turret("keys", "create", "a-customer-with-a-long-name", "--label", "some words of it")
    rows = json.loads(turret("keys", "list", "--json").stdout)
    listed = turret("keys", "list").stdout
    assert all(row["prefix"] in listed and row["tenant"] in listed for row in rows)
    assert "…" not in listed
    entry = Entry("r", "end", 0, rows[0]["tenant"], rows[0]["prefix"], "m" * 128, 1_000_000, 0, 7)
    post(Database(str(tmp_path / "turret.db")), [entry])
    used = turret("usage").stdout
    assert rows[0]["prefix"] in used
    assert used.count("m" * 40) == 3
    assert "1,000,000" in used


@pytest.mark.parametrize("amount", ["nan", "inf"])
def test_a_time_that_is_none(turret, amount):
    for command in (["create", "acme", "--days"], ["rotate", "tk-1a2b3c4d", "--overlap-h"]):
        result = turret("keys", *command, amount)
        assert result.exit_code == 2
        assert "is no time" in result.stderr


def test_usage(turret, tmp_path):
    assert "nothing was used" in turret("usage").stderr
    post(
        Database(str(tmp_path / "turret.db")),
        [Entry("r1", "end", 1_764_288_000, "acme", "tk-12345678", "sql", 1000, 0, 234)],
    )
    (row,) = json.loads(turret("usage", "--json", "--tenant", "acme").stdout)
    assert (row["day"], row["prompt_tokens"], row["completion_tokens"]) == ("2025-11-28", 1000, 234)
    assert "1,000" in turret("usage").stdout


def test_no_number_of_the_usage_is_cut_on_a_narrow_terminal(turret, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    entry = Entry("r1", "end", 1_764_288_000, "acme", "tk-12345678", "sql", 1_234_567, 0, 234)
    post(Database(str(tmp_path / "turret.db")), [entry])
    shown = turret("usage").stdout
    assert "1,234,567" in shown
    assert "sql" in shown
    assert "…" not in shown


def test_what_is_not_there_is_said(turret):
    with pytest.raises(NotFound, match="no tenant 'nobody'"):
        turret("keys", "create", "nobody")


def test_without_a_database_the_option_is_named(monkeypatch):
    monkeypatch.delenv("TURRET_DATABASE", raising=False)
    result = CliRunner().invoke(_typer, ["keys", "list"])
    assert result.exit_code == 2
    assert "--database" in result.stderr
