"""`turret deploy ray`: the flags of the server, and those of the replicas."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from typer.testing import CliRunner

import turret_server.scaleout.application as application
from turret_server.cli.main import _typer
from turret_server.config import ServeConfig
from turret_server.scaleout.application import ScaleConfig


@pytest.fixture
def deploy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command without a cluster; what it would have deployed."""
    given: list[tuple[ServeConfig, ScaleConfig]] = []
    monkeypatch.setattr(application, "run", lambda *configs: given.append(configs))

    def run(*args: str) -> tuple[ServeConfig, ScaleConfig]:
        result = CliRunner().invoke(_typer, ["deploy", "ray", *args])
        assert result.exit_code == 0, result.output
        return given[-1]

    return run


def test_the_defaults(deploy):
    config, scale = deploy()
    assert config == ServeConfig(model="demo", adapter_roots=config.adapter_roots)
    assert scale == ScaleConfig()


def test_flags_of_both(deploy):
    flags = ["--adapter", "a=x", "--port", "9", "--replicas", "3", "--max-running", "10"]
    config, scale = deploy("demo", *flags, "--max-replicas", "5", "--no-affinity")
    assert (config.adapters, config.port) == ({"a": "x"}, 9)
    assert (scale.replicas, scale.max_replicas, scale.affinity) == (3, 5, False)
    assert scale.target_requests == 5


def test_environment_and_file(deploy, monkeypatch, tmp_path):
    file = tmp_path / "turret.toml"
    file.write_text("port = 7\nmax_waiting = 8\n")
    monkeypatch.setenv("TURRET_REPLICAS", "4")
    config, scale = deploy("--config", str(file))
    assert (config.port, config.max_waiting, scale.replicas) == (7, 8, 4)


def test_there_are_never_fewer_at_the_most_than_at_the_least(deploy):
    assert deploy("--replicas", "4", "--max-replicas", "3")[1].max_replicas == 4


def test_without_ray(monkeypatch):
    monkeypatch.setattr(application, "_guard", lambda: None)
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(_typer, ["deploy", "ray"])
    assert "pip install 'turret[ray]'" in str(result.exception)
