"""Adapters behind URLs (s3://, gs://, https://, …), fetched through fsspec within bounds."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import Callback

from turret_adapters.errors import quote
from turret_server.errors import BadRequest, FetchFailed, NotFound, TurretError, Unprocessable
from turret_server.sources.archive import is_archive, unpack
from turret_server.sources.cached import WANTED, WEIGHTS, FetchLimits, keep, staging


def fetch(url: str, limits: FetchLimits) -> Path:
    """Download an adapter: an archive, or the files of a folder.

    Args:
        url: without `url_problem`.
        limits: bounds on what it brings.

    Returns:
        A folder in the cache, named by its content.

    Raises:
        NotFound: nothing is there.
        BadRequest: it is damaged or hostile, or holds no adapter.
        Unprocessable: its file system is not installed, or it is larger than allowed.
        FetchFailed: it cannot be read.
    """
    what = f"{quote(url)} was not fetched"
    try:
        files, path = fsspec.url_to_fs(url)
        files.invalidate_cache()  # listings; instances are shared
        with staging() as folder:
            meter = _Meter(limits, what)
            if is_archive(url):
                archive = folder / url.rsplit("/", 1)[-1]
                files.get_file(path, str(archive), callback=meter)
                return unpack(archive, limits, source=url)
            into = folder / "files"
            into.mkdir()
            for name in _listed(files, path, limits, what):
                files.get_file(f"{path.rstrip('/')}/{name}", str(into / name), callback=meter)
            return keep(into, _address(into))
    except TurretError:
        raise
    except ImportError as error:
        raise Unprocessable(
            what,
            f"its file system is not installed ({_first_line(error)})",
            'Install it: pip install "turret[remote]", or the package that is named.',
        ) from error
    except ValueError as error:
        raise BadRequest(what, _first_line(error), "Use a URL that fsspec knows.") from error
    except FileNotFoundError as error:
        raise NotFound(what, "nothing is there", "Check the URL.") from error
    except Exception as error:  # each file system raises errors of its own
        raise FetchFailed(
            what, _first_line(error), "Check the URL, the network and the credentials."
        ) from error


class _Meter(Callback):
    """Counts the bytes of all downloads of one fetch, and ends it where they are too many."""

    def __init__(self, limits: FetchLimits, what: str) -> None:
        super().__init__()
        self._limits, self._what, self._bytes = limits, what, 0
        self._deadline = time.monotonic() + limits.max_s

    def set_size(self, size: int | None) -> None:
        """A file of so many bytes comes next."""
        self._check(self._bytes + (size or 0))

    def relative_update(self, inc: int = 1) -> None:
        """So many bytes have come."""
        self._bytes += inc
        self._check(self._bytes)

    def absolute_update(self, value: int) -> None:
        """Of this file so many bytes have come; some file systems count so."""
        self._check(self._bytes + value)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._limits.max_bytes:
            raise Unprocessable(
                self._what,
                f"it has more than {self._limits.max_bytes:,} bytes",
                "Download it yourself and name the folder.",
            )
        if time.monotonic() > self._deadline:
            raise FetchFailed(
                self._what,
                f"it takes longer than {self._limits.max_s:g} s",
                "Download it yourself and name the folder.",
            )


def _listed(files: Any, path: str, limits: FetchLimits, what: str) -> list[str]:
    """The names of the adapter's files in a remote folder."""
    found = [
        (str(entry["name"]).rsplit("/", 1)[-1], entry.get("size") or 0)
        for entry in files.ls(path, detail=True)
        if entry.get("type") == "file"
        and str(entry["name"]).strip("/").rpartition("/")[0] == path.strip("/")
    ]
    found = [
        (name, size)
        for name, size in found
        if name.endswith(WANTED) and not name.startswith(".") and "\\" not in name
    ]
    if not any(name.endswith(WEIGHTS) for name, _ in found):
        raise NotFound(
            what,
            "no *.safetensors and no *.gguf is listed there",
            "Check the URL; a folder that cannot be listed is fetched as .zip or .tar.gz.",
        )
    total = sum(size for _, size in found)
    if len(found) > limits.max_files or total > limits.max_bytes:
        raise Unprocessable(
            what,
            f"it holds {len(found)} files of {total:,} bytes; {limits.max_files} files of "
            f"{limits.max_bytes:,} bytes are allowed",
            "Download it yourself and name the folder.",
        )
    return [name for name, _ in found]


def _address(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    sha = hashlib.sha256(b"turret-folder-1\0")
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            sha.update(f"{path.name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
