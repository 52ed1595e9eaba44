"""URLs, through fsspec's file system in memory and a server on this machine."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from turret_server.errors import BadRequest, FetchFailed, NotFound, Unprocessable
from turret_server.sources.cached import FetchLimits
from turret_server.sources.remote import fetch

LIMITS = FetchLimits()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/bucket", recursive=True)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(URL, folder) of a web server."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def read(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_files_of_a_folder(memory, files, cache: Path):
    for name, data in (files | {"a.bin": b"pickle", "sub/a.safetensors": b"other"}).items():
        memory.pipe(f"/bucket/sql/{name}", data)
    folder = fetch("memory://bucket/sql", LIMITS)
    assert read(folder) == files
    assert fetch("memory://bucket/sql/", LIMITS) == folder
    assert list(cache.iterdir()) == [folder]
    memory.pipe("/bucket/sql/adapter_config.json", b"[]")
    assert fetch("memory://bucket/sql", LIMITS) != folder


def test_an_archive(memory, files, tmp_path: Path):
    from tests.server.sources.test_archive import zipped

    memory.pipe("/bucket/sql.zip", zipped(tmp_path / "a.zip", files).read_bytes())
    assert read(fetch("memory://bucket/sql.zip", LIMITS)) == files


def test_over_http(served, files):
    from tests.server.sources.test_archive import zipped

    url, folder = served
    zipped(folder / "sql.zip", files)
    (folder / "sql").mkdir()
    for name, data in files.items():
        (folder / "sql" / name).write_bytes(data)
    assert read(fetch(f"{url}/sql.zip", LIMITS)) == files
    assert read(fetch(f"{url}/sql", LIMITS)) == files


@pytest.mark.parametrize("source", ["memory", "http"])
@pytest.mark.parametrize("path", ["sql", "sql.zip"])
def test_too_much_is_not_downloaded(memory, served, cache: Path, source: str, path: str):
    url, folder = served
    name = "a.safetensors" if path == "sql" else ""
    memory.pipe(f"/bucket/{path}/{name}".rstrip("/"), bytes(5000))
    target = folder / path / name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(bytes(5000))
    base = "memory://bucket" if source == "memory" else url
    with pytest.raises(Unprocessable, match="bytes"):
        fetch(f"{base}/{path}", FetchLimits(max_bytes=4000))
    assert list(cache.iterdir()) == []


def test_a_download_has_a_deadline(memory, files):
    memory.pipe("/bucket/sql/a.safetensors", b"x")
    with pytest.raises(FetchFailed, match="longer than -1 s"):
        fetch("memory://bucket/sql", FetchLimits(max_s=-1))


def test_nothing_there(memory, served, cache: Path):
    memory.pipe("/bucket/sql/adapter_model.bin", b"pickle")
    for url in ("memory://bucket/sql", "memory://bucket/nope", f"{served[0]}/nope.zip"):
        with pytest.raises(NotFound):
            fetch(url, LIMITS)
    assert list(cache.iterdir()) == []


def test_a_server_that_is_not_there():
    with pytest.raises(FetchFailed, match="network"):
        fetch("http://127.0.0.1:9/sql.zip", LIMITS)


def test_a_file_system_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(Unprocessable, match=r"Install s3fs.*turret\[remote\]"):
        fetch("s3://bucket/sql", LIMITS)


def test_an_unknown_scheme():
    with pytest.raises(BadRequest, match="Protocol not known"):
        fetch("gopher://bucket/sql", LIMITS)
