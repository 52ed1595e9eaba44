"""What the settings of `turret serve` come to, those of documents above all."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from turret_server.cli.main import _typer
from turret_server.config import ServeConfig
from turret_server.errors import StartupError
from turret_server.plan import document_settings, make_plan
from turret_server.reconfigure import LIVE


def test_the_defaults_are_those_of_the_settings_themselves():
    from turret_server.api.documents.settings import DocumentSettings

    found, plain = document_settings(ServeConfig(model="demo")), DocumentSettings()
    for name in ("max_body_bytes", "max_pages", "remotes", "workers"):
        assert getattr(found, name) == getattr(plain, name)
    for name in ("engine", "workers", "max_pages", "max_pixels", "page_timeout_s"):
        assert getattr(found.pictures, name) == getattr(plain.pictures, name)
    assert set(found.tasks) == set(plain.tasks)


def test_flags_and_the_file_reach_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given: list[ServeConfig] = []
    monkeypatch.setattr("turret_server.server.run_server", lambda c, again: given.append(c))
    file = tmp_path / "turret.toml"
    file.write_text(
        "max_document_mib = 3\n"
        'document_remotes = ["https://files.example.com"]\n'
        "document_pages = 7\n"
        '[tasks.clause]\ninstruction = "It is a contract."\nanswer = "span"\n'
    )
    task = "other=" + json.dumps({"directive": "Briefly."})
    flags = ["--config", str(file), "--document-workers", "5", "--document-megapixels", "9"]
    result = CliRunner().invoke(_typer, ["serve", "demo", *flags])
    assert result.exit_code == 0, result.output
    settings = document_settings(given[0])
    assert settings.max_body_bytes == settings.pictures.max_bytes == 3 << 20
    assert settings.max_pages == settings.pictures.max_pages == 7
    assert settings.remotes == ("https://files.example.com",)
    assert (settings.pictures.workers, settings.pictures.max_pixels) == (5, 9_000_000)
    assert settings.tasks["clause"].instruction == "It is a contract."
    CliRunner().invoke(_typer, ["serve", "demo", "--task", task])
    assert document_settings(given[1]).tasks["other"].directive == "Briefly."


def test_no_setting_of_the_api_gets_lost_on_its_way(demo_folder: Path):
    from turret_server.api.settings import ApiSettings
    from turret_server.server import _api_settings

    plain = ServeConfig(model=str(demo_folder))
    shared = {f.name for f in fields(ServeConfig)} & {f.name for f in fields(ApiSettings)} - LIVE
    assert {"max_body_bytes", "max_waiting", "metrics_labels", "share_prefixes"} <= shared
    other = {
        name: not value if isinstance(value := getattr(plain, name), bool) else value + 1
        for name in shared
    }
    found = _api_settings(make_plan(replace(plain, **other), Console(quiet=True)))
    assert {name: getattr(found, name) for name in shared} == other


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ocr": "abbyy"}, "--ocr 'abbyy' is not known"),
        ({"document_remotes": ("ftp://a",)}, "--document-remote 'ftp://a'"),
        ({"tasks": {"a": "{"}}, "--task 'a' is not understood"),
        ({"tasks": {"a": "[]"}}, "the task 'a' cannot be offered"),
        ({"tasks": {"a": '{"x": "y"}'}}, "the task 'a' cannot be offered"),
    ],
)
def test_what_cannot_be_served_is_named(changes, what):
    with pytest.raises(StartupError, match=what):
        document_settings(ServeConfig(model="demo", **changes))


def test_a_recipe_whose_scorer_is_not_there_is_found_out_before_anything_starts(demo_folder: Path):
    recipe = json.dumps({"rerank": {"scorer": "judge", "candidates": 2}})
    config = ServeConfig(model=str(demo_folder), recipes={"best": recipe})
    with pytest.raises(StartupError, match="there is no scorer 'judge'"):
        make_plan(config, Console(quiet=True))
