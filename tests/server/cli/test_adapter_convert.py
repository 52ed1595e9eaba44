"""`turret adapters convert`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import turret_adapters
from turret_server.cli.main import _typer

DEMO = Path(turret_adapters.__file__).parent / "demo"


def convert(*args: str) -> Result:
    return CliRunner().invoke(_typer, ["adapters", "convert", *args, "--base", "demo"])


def test_a_lora_of_many_ranks_gets_one(tmp_path: Path) -> None:
    result = convert(str(DEMO / "dates"), "--to", str(tmp_path / "lora"), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["kind"], report["rank"], report["deviation"]) == ("lora", 8, 0)
    assert (report["ranks"]["layers.0.up_proj"], report["ranks"]["layers.20.up_proj"]) == (4, 8)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 8, False)
    assert config["target_modules"] == ["down_proj", "up_proj"]
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    assert report["num_bytes"] == weights.stat().st_size


def test_half_the_room_for_people(tmp_path: Path) -> None:
    target = tmp_path / "lora"
    result = convert(str(DEMO / "sql"), "--to", str(target), "--dtype", "bfloat16", "--own-ranks")
    assert result.exit_code == 0, result.output
    assert "lora -> LoRA of rank 3" in result.stdout
    rows = [line.strip("│ ").split() for line in result.stdout.splitlines()]
    assert ["q_proj", "│", "3", "│", "0-29"] in rows


def test_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The demo model lies in the cache, too, so the archive's folder is what is moved.
    monkeypatch.setattr(
        "turret_server.sources.cached.adapters_folder", lambda: tmp_path / "unpacked"
    )
    (tmp_path / "unpacked").mkdir()
    archive = shutil.make_archive(str(tmp_path / "sql"), "zip", DEMO / "sql")
    assert convert(archive, "--to", str(tmp_path / "lora")).exit_code == 0


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    for name in ("triage", "cats-50"):
        result = convert(str(DEMO / name), "--to", str(tmp_path / name))
        assert result.exit_code == 1
        lines = result.stderr.splitlines()
        assert [line.partition(":")[0] for line in lines] == ["error", "why", "fix"]
        assert "LoRA can only add low-rank changes" in lines[1]
        assert not (tmp_path / name).exists()


def test_a_recipe_is_derived_and_written(tmp_path: Path) -> None:
    sources = [str(DEMO / "sql"), {"name": str(DEMO / "dates"), "weight": 0.5}]
    recipe = json.dumps({"method": "sum", "sources": sources})
    result = convert(recipe, "--to", str(tmp_path / "both"), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["kind"], report["rank"]) == ("derived", 3 + 8)
    assert report["ranks"]["layers.0.q_proj"] == 3


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ('{"method": "ties", "sources": ["a"]}', "needs a density"),
        ('{"sources": ["a"]}', "has no 'method'"),
        ('{"method": "sum"}', "no list of adapters"),
        ("{", "Expecting property name"),
    ],
)
def test_a_recipe_that_makes_no_sense(tmp_path: Path, recipe: str, why: str) -> None:
    result = convert(recipe, "--to", str(tmp_path / "lora"))
    assert result.exit_code == 2
    assert why in " ".join(result.stderr.replace("│", " ").split())


def test_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken")
    result = convert(str(DEMO / "sql"), "--to", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert "cannot be written" in " ".join(result.stderr.replace("│", " ").split())
