"""`turret adapters`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from turret_adapters.spec import ranges
from turret_server.cli.main import _typer
from turret_server.errors import TurretError


def adapters(*args: str) -> Result:
    return CliRunner().invoke(_typer, ["adapters", *args])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A LoRA folder: rank 4 on q_proj of layers 0, 1 and 3."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "layers_to_transform": [0, 1, 3],
        "base_model_name_or_path": "some/base [v2]",
    }
    tensors = {}
    for layer in (0, 1, 3):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{stem}.lora_A.weight"] = torch.ones(4, 16)
        tensors[f"{stem}.lora_B.weight"] = torch.ones(16, 4)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    return tmp_path


def test_inspect_shows_what_the_folder_holds(folder: Path) -> None:
    result = adapters("inspect", str(folder))
    assert result.exit_code == 0
    rows = [line.strip("│ ").split() for line in result.stdout.splitlines()]
    assert ["kind", "lora"] in rows
    assert ["base", "model", "some/base", "[v2]"] in rows
    assert ["parameters", "384"] in rows
    assert ["q_proj", "│", "4", "│", "0-1,", "3"] in rows


def test_inspect_as_json(folder: Path) -> None:
    result = adapters("inspect", "--json", str(folder))
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["refusal"] is None
    assert report["modules"] == {"q_proj": {"ranks": [4], "layers": [0, 1, 3]}}


def test_inspect_says_why_it_would_be_refused(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    result = adapters("inspect", str(folder))
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "why", "fix"]


def test_inspect_as_json_fails_too_where_it_would_be_refused(tmp_path: Path) -> None:
    result = adapters("inspect", "--json", str(tmp_path / "nothing"))
    assert result.exit_code == 1
    assert set(json.loads(result.stdout)["refusal"]) == {"what", "why", "fix"}


@pytest.fixture
def random_folder(folder: Path) -> Path:
    """The same with values of all sizes."""
    torch.manual_seed(0)
    file = folder / "adapter_model.safetensors"
    save_file({key: torch.randn_like(t) for key, t in load_file(file).items()}, file)
    return folder


def test_compress_reports_size_and_drift(random_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    result = adapters("compress", "--json", str(random_folder), str(target), "--density", "0.5")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["num_bytes"] == sum(f.stat().st_size for f in target.iterdir())
    assert set(report["drift"]) == {f"layers.{i}.q_proj" for i in (0, 1, 3)}
    assert all(0 < drift < 1 for drift in report["drift"].values())
    result = adapters("verify", str(target))
    assert result.exit_code == 0
    rows = [line.strip("│ ").split() for line in result.stdout.splitlines()]
    assert ["kind", "compeft"] in rows


def test_compress_for_people(random_folder: Path, tmp_path: Path) -> None:
    result = adapters("compress", str(random_folder), str(tmp_path / "small"), "--alpha", "1.5")
    assert "alpha 1.5" in result.stdout
    assert "q_proj" in result.stdout


@pytest.mark.parametrize("options", [["--alpha", "big"], ["--alpha", "-1"], ["--density", "0"]])
def test_compress_refuses_odd_numbers(folder: Path, tmp_path: Path, options: list[str]) -> None:
    result = adapters("compress", str(folder), str(tmp_path / "small"), *options)
    assert result.exit_code == 2
    assert not (tmp_path / "small").exists()


def test_compress_says_why_not(tmp_path: Path) -> None:
    result = adapters("compress", str(tmp_path), str(tmp_path / "small"))
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "why", "fix"]


def test_inspect_reads_archives(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURRET_CACHE", str(tmp_path / "cache"))
    archive = shutil.make_archive(str(tmp_path / "packed"), "gztar", folder)
    plain, packed = (
        json.loads(adapters("inspect", "--json", str(path)).stdout) for path in (folder, archive)
    )
    assert packed == {**plain, "path": archive}


def test_list(server: Any) -> None:
    result = adapters("list", "--url", server.url)
    assert [cell.strip() for cell in result.stdout.splitlines()[3].strip("│").split("│")] == [
        "sql",
        "lora",
        "8",
        "8.2 kB",
        "device, pinned",
        "0123456789ab",
        "/adapters/sql",
    ]


def test_list_as_json(server: Any) -> None:
    (card,) = json.loads(adapters("list", "--json", "--url", server.url).stdout)
    assert card["num_parameters"] == 4096


def test_load_puts_the_adapter(server: Any) -> None:
    result = adapters("load", "dates", "relative/to/a/root", "--url", server.url, "--api-key", "k")
    assert result.stdout == "serving dates: lora on q_proj, v_proj\n"
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("PUT", "/v1/adapters/dates")
    assert (asked.authorization, asked.body) == ("Bearer k", {"path": "relative/to/a/root"})


def test_a_folder_that_is_here_is_sent_as_an_absolute_path(
    server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    adapters("load", "dates", folder.name, "--url", server.url)
    assert server.asked[0].body == {"path": str(folder)}


def test_load_with_a_digest_and_a_pin(server: Any) -> None:
    url = "s3://bucket/dates.zip"
    adapters("load", "dates", url, "--digest", "ab" * 32, "--pin", "--url", server.url)
    assert server.asked[0].body == {"path": url, "digest": "ab" * 32, "pin": True}


@pytest.mark.parametrize(("command", "pinned"), [("pin", True), ("unpin", False)])
def test_pin_and_unpin(server: Any, command: str, pinned: bool) -> None:
    assert adapters(command, "sql", "--url", server.url).stdout == f"{command}ned sql\n"
    assert server.asked[0].body == {"pin": pinned}


def test_a_name_with_odd_characters_stays_one_segment(server: Any) -> None:
    result = adapters("unload", "../models?x", "--url", server.url)
    assert isinstance(result.exception, TurretError)
    assert server.asked[0].path == "/v1/adapters/../models?x"


def test_a_refused_load_keeps_the_servers_reason(server: Any) -> None:
    error = adapters("load", "x", "/etc", "--url", server.url).exception
    assert isinstance(error, TurretError)
    assert (error.what, error.fix) == ("the path '/etc' is not allowed", "fix")


def test_unload(server: Any) -> None:
    assert adapters("unload", "sql", "--url", server.url).stdout == "unloaded sql\n"


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8")]
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
