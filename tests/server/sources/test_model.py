"""Names of models become local folders; nothing here touches a network."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from turret_server import demo
from turret_server.cache import cache_root
from turret_server.errors import StartupError
from turret_server.sources import resolve_model


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).touch()
    return folder


def test_cache_root_is_what_turret_cache_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TURRET_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_root() == tmp_path / "own"


def test_cache_root_lies_below_xdg_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("TURRET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "turret"


@pytest.mark.parametrize("xdg", ["", "relative/folder"])
def test_cache_root_falls_back_to_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, xdg: str
):
    monkeypatch.delenv("TURRET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache/turret"


def test_a_folder_is_returned_absolute(monkeypatch: pytest.MonkeyPatch, model_folder: Path):
    monkeypatch.chdir(model_folder.parent)
    assert resolve_model("model", progress=False) == model_folder


def test_demo_means_the_demo_model_even_beside_a_folder_of_that_name(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path
):
    model_folder.rename(model_folder.with_name("demo"))
    monkeypatch.chdir(model_folder.parent)
    monkeypatch.setattr(demo, "demo_model", lambda *, progress: Path("/converted"))
    assert resolve_model("demo", progress=False) == Path("/converted")
    assert resolve_model("./demo", progress=False) == model_folder.with_name("demo")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_without_a_needed_file_is_refused_by_its_name(model_folder: Path, missing: str):
    (model_folder / missing).unlink()
    with pytest.raises(StartupError) as caught:
        resolve_model(str(model_folder), progress=False)
    assert (missing if missing.endswith("json") else "*.safetensors") in caught.value.why


@pytest.mark.parametrize(
    "spec", ["", "./nowhere", "../nowhere", "a/b/c", "bad//id", "a b", "~/x/y"]
)
def test_what_is_neither_folder_nor_id_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _never)
    with pytest.raises(StartupError, match="neither an existing folder nor a Hugging Face id"):
        resolve_model(spec, progress=False)


def test_a_file_is_not_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").touch()
    with pytest.raises(StartupError, match="neither an existing folder"):
        resolve_model("model.gguf", progress=False)


def test_a_download_takes_no_pickle_no_code_and_no_second_copy(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path
):
    asked: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **kwargs: Any) -> str:
        asked.update(kwargs, repo_id=repo_id)
        return str(model_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_model("owner/name", progress=False) == model_folder
    assert asked["repo_id"] == "owner/name"
    wanted = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    ]
    unwanted = [
        "pytorch_model.bin",
        "model.pt",
        "training_args.bin",
        "modeling_own.py",
        "consolidated.safetensors",
        "onnx/model.safetensors",
        "original/consolidated.00.pth",
        "README.md",
    ]
    taken = filter_repo_objects(
        wanted + unwanted,
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(taken) == wanted


# As much of an HTTP response as the errors of the hub client look at.
_RESPONSE = cast(Any, SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            LocalEntryNotFoundError("No route to host\nlong advice"),
            r"reached .* \(No route to host\)",
        ),
        (ConnectionError("refused"), r"reached .* \(refused\)"),
        (RepositoryNotFoundError("404", response=_RESPONSE), "no such public model"),
        (GatedRepoError("403", response=_RESPONSE), "accepted licence"),
    ],
    ids=["not cached", "no connection", "unknown", "gated"],
)
def test_a_failed_download_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, why: str
):
    def snapshot_download(repo_id: str, **kwargs: Any) -> str:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(StartupError, match=f"model 'owner/name' was not downloaded: .*{why}"):
        resolve_model("owner/name", progress=False)


def test_importing_the_sources_loads_neither_torch_nor_transformers():
    code = (
        "import sys, turret_server.sources, turret_server.demo;"
        "print([m for m in ('torch', 'transformers', 'gguf') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def _never(*args: Any, **kwargs: Any) -> str:
    raise AssertionError("the hub must not be asked")
