"""`turret serve`: flags go before the environment, and that before turret.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import turret_server.server
from turret_server.cli.main import _typer
from turret_server.config import ServeConfig
from turret_server.errors import StartupError


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command without a server; what the server would have got."""
    configs: list[ServeConfig] = []
    monkeypatch.setattr(turret_server.server, "run_server", lambda c, again: configs.append(c))

    def run(*args: str) -> ServeConfig:
        result = CliRunner().invoke(_typer, ["serve", *args])
        assert result.exit_code == 0, result.output
        return configs[-1]

    return run


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A turret.toml."""
    path = tmp_path / "turret.toml"
    path.write_text('port = 1\nmax_running = 11\ndatabase = "file.db"\n')
    return str(path)


def test_flags_then_environment_then_file(serve: Any, file: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("TURRET_PORT", "2")
    monkeypatch.setenv("TURRET_DATABASE", "environment.db")
    config = serve("--config", file, "--port", "3")
    assert (config.port, config.database, config.max_running) == (3, "environment.db", 11)
    assert serve("--config", file).port == 2


def test_several_values_in_the_environment(serve: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TURRET_API_KEY", "one two")
    assert serve("demo").api_keys == ("one", "two")


def test_the_file_is_read_again_below_the_same_flags(
    serve: Any, file: str, monkeypatch: Any
) -> None:
    again: list[Any] = []
    monkeypatch.setattr(turret_server.server, "run_server", lambda _, reread: again.append(reread))
    CliRunner().invoke(_typer, ["serve", "--config", file, "--port", "3"])
    CliRunner().invoke(_typer, ["serve", "--port", "3"])
    reread, nothing = again
    assert nothing is None
    Path(file).write_text('port = 9\nmax_running = 12\n[adapters]\nsql = "./sql"\n')
    config = reread()
    assert (config.port, config.max_running, config.database) == (3, 12, None)
    assert config.adapters == {"sql": "./sql"}
    for text, told in (
        ("max_running = \n", "line 1"),
        ("max_walking = 1\n", "max_walking"),
        ('max_running = "many"\n', "max-running"),
        ("max_running = 0\n", "max-running"),
        ("adapters = 5\n", "'adapters' is no table"),
    ):
        Path(file).write_text(text)
        with pytest.raises(StartupError, match=told):
            reread()


def test_an_empty_database_is_refused() -> None:
    """`--database "$UNSET"` opened the server to everybody."""
    with pytest.raises(StartupError, match="--database is empty"):
        turret_server.plan.what_is_served(ServeConfig(model="demo", database=""))


def test_a_key_for_metrics_alone_is_refused() -> None:
    config = ServeConfig(model="demo", metrics_keys=("tk-m",))
    with pytest.raises(StartupError, match="--metrics-key"):
        turret_server.plan.what_is_served(config)
