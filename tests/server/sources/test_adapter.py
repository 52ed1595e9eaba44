"""What a source is, and whether a run-time load may read it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tests.server.sources.test_archive import zipped

from turret_server.errors import (
    BadRequest,
    FetchFailed,
    Forbidden,
    NotFound,
    TurretError,
    Unprocessable,
)
from turret_server.sources.adapter import AdapterSources, Located
from turret_server.sources.cached import FetchLimits


@pytest.fixture
def root(tmp_path: Path, files: dict[str, bytes]) -> Path:
    root = tmp_path / "root"
    (root / "sql").mkdir(parents=True)
    zipped(root / "sql.zip", files)
    zipped(tmp_path / "outside.zip", files)
    (root / "link.zip").symlink_to(tmp_path / "outside.zip")
    return root


def test_run_time_loads_read_below_the_roots(root: Path, files: dict[str, bytes]):
    sources = AdapterSources([root])
    for source in ("sql", str(root / "sql"), f"file://{root}/sql"):
        found = sources.locate(source, confined=True)
        assert found == Located("folder", str(root / "sql"), (str(root),))
        local = sources.fetch(found)
        assert (local.source, local.folder) == (found.name, found.name)
    found = sources.locate("sql.zip", confined=True)
    assert found == Located("archive", str(root / "sql.zip"))
    local = sources.fetch(found)
    assert local.source == str(root / "sql.zip")
    assert local.roots == (local.folder,)
    assert {file.name for file in Path(local.folder).iterdir()} == files.keys()


@pytest.mark.parametrize(
    "source",
    [
        "link.zip",
        "../outside.zip",
        "file:///etc/passwd",
        "file://../outside.zip",
        "s3://bucket/x",
        "hf://owner/name",
        "https://example.com/a.zip",
        "memory://bucket/x",
        "local:///etc",
    ],
)
def test_and_nothing_else(root: Path, source: str):
    with pytest.raises(Forbidden):
        AdapterSources([root]).locate(source, confined=True)


def test_an_id_is_no_path_unless_it_is_allowed(root: Path):
    with pytest.raises(NotFound):
        AdapterSources([root]).locate("owner/name", confined=True)
    sources = AdapterSources([root], ["hf://owner"])
    assert sources.locate("owner/name@v2", confined=True) == Located("hub", "owner/name@v2")
    with pytest.raises(NotFound):
        sources.locate("other/name", confined=True)
    (root / "owner" / "name").mkdir(parents=True)
    assert sources.locate("owner/name", confined=True).kind == "folder"


@pytest.mark.parametrize(
    ("prefix", "url", "allowed"),
    [
        ("s3://bucket/team", "s3://bucket/team", True),
        ("s3://bucket/team", "s3://bucket/team/sql", True),
        ("s3://bucket/team/", "s3://bucket/team/sql", True),
        ("s3://bucket/team", "s3://bucket/team-of-others/sql", False),
        ("s3://", "s3://bucket/sql", True),
        ("s3://", "https://bucket/sql", False),
        ("https://example.com", "https://example.com.evil.org/x.zip", False),
        ("hf://owner", "hf://owner/name", True),
        ("hf://owner", "hf://owner/name@main", True),
        ("hf://owner", "hf://owner-b/name", False),
        ("hf://owner/name", "hf://owner/name@v2", True),
        ("hf://owner/name@v1", "hf://owner/name@v1", True),
        ("hf://owner/name@v1", "hf://owner/name@v2", False),
        ("hf://owner/name@v1", "hf://owner/name", False),
    ],
)
def test_allowed_prefixes(prefix: str, url: str, allowed: bool):
    sources = AdapterSources([], [prefix])
    if allowed:
        assert sources.locate(url, confined=True).kind in ("url", "hub")
    else:
        with pytest.raises(Forbidden):
            sources.locate(url, confined=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://ok.org/a/../b.zip",
        "https://ok.org/a/%2e%2e/b.zip",
        "https://ok.org@evil.org/b.zip",
        "https://ok.org/a.zip?x=1",
        "https://ok.org/a::file:///etc/passwd",
        "simplecache::https://ok.org/a.zip",
        "https://ok.org/a b.zip",
        "https://ok.org\\evil",
        "https://",
        "hf://owner/name/sub",
        "hf://../name",
        "",
        "a\x00b",
        "file:///a%00b",
        "file://",
    ],
)
def test_malformed_sources(url: str):
    for confined in (True, False):
        with pytest.raises(BadRequest):
            AdapterSources([Path("/")], ["https://ok.org", "hf://"]).locate(url, confined=confined)


def test_the_operators_own_are_free(root: Path, monkeypatch: pytest.MonkeyPatch):
    sources = AdapterSources()
    monkeypatch.chdir(root.parent)
    for source, kind in {
        "root/sql": "folder",
        "outside.zip": "archive",
        "root/link.zip": "archive",
        "owner/name": "hub",
        "hf://owner/name@v1": "hub",
        "s3://bucket/sql": "url",
        "./no/such/folder": "folder",  # the loader says that it is not there
    }.items():
        assert sources.locate(source, confined=False).kind == kind


class Hub:
    """A hub with one repository, in place of the real one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.size = folder, {}, 10
        self.error: Exception | None = None
        self.info_error: Exception | None = None

    def model_info(self, repo_id: str, **options: Any) -> Any:
        if self.info_error is not None:
            raise self.info_error
        names = {"a.safetensors": self.size, "a.bin": 10**12, "sub/b.json": 10**12}
        files = [SimpleNamespace(rfilename=name, size=size) for name, size in names.items()]
        return SimpleNamespace(sha="c0ffee", siblings=files)

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.asked = options | {"repo_id": repo_id}
        if self.error is not None:
            raise self.error
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    hub = Hub(tmp_path / "models--owner--name" / "snapshots" / "c0ffee")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


def test_a_repository_is_downloaded_without_what_could_run(hub: Hub):
    local = AdapterSources().fetch(Located("hub", "owner/name@v1"))
    assert (hub.asked["repo_id"], hub.asked["revision"]) == ("owner/name", "c0ffee")
    assert set(hub.asked["allow_patterns"]) == {"*.json", "*.safetensors", "*.gguf"}
    assert hub.asked["ignore_patterns"] == ["*/*"]
    assert (local.source, local.folder) == ("hf://owner/name@v1", str(hub.folder))
    assert local.roots == (str(hub.folder.parents[1]),)


def test_a_repository_that_is_too_large_is_not_downloaded(hub: Hub):
    hub.size = 5000
    with pytest.raises(Unprocessable, match="5,000 bytes, and 4,000 are allowed"):
        AdapterSources(limits=FetchLimits(max_bytes=4000)).fetch(Located("hub", "owner/name"))
    assert not hub.asked


def test_offline_the_cache_is_read(hub: Hub):
    hub.info_error = OSError("no route to host")
    assert AdapterSources().fetch(Located("hub", "owner/name")).folder == str(hub.folder)
    assert hub.asked["local_files_only"] is True
    hub.error = LocalEntryNotFoundError("not cached")
    with pytest.raises(FetchFailed, match="cannot be reached and its cache lacks the adapter"):
        AdapterSources().fetch(Located("hub", "owner/name"))


_RESPONSE = cast(Any, SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "kind", "why"),
    [
        (RepositoryNotFoundError("404", response=_RESPONSE), NotFound, "no such public adapter"),
        (RevisionNotFoundError("404", response=_RESPONSE), NotFound, "no such revision"),
        (GatedRepoError("403", response=_RESPONSE), Forbidden, "accepted licence"),
    ],
)
def test_a_repository_that_is_refused(
    hub: Hub, error: Exception, kind: type[TurretError], why: str
):
    for where in ("info_error", "error"):
        setattr(hub, where, error)
        with pytest.raises(kind, match=f"adapter 'owner/name' was not downloaded: .*{why}"):
            AdapterSources().fetch(Located("hub", "owner/name"))
        setattr(hub, where, None)


def test_a_cached_folder_that_was_removed_is_made_again(root: Path):
    sources = AdapterSources([root])
    found = sources.locate("sql.zip", confined=True)
    folder = sources.fetch(found).folder
    shutil.rmtree(folder)
    assert Path(sources.fetch(found).folder, "adapter_config.json").exists()
