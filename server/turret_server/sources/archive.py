"""Adapters in zip and tar archives: unpacked into the cache, checked before a byte is written.

An archive is a stranger's file. Absolute and climbing names, links and devices refuse all of it;
sizes and counts are bounded by what its own directory declares, and again while it is unpacked.
Only the files of one adapter are written, by their last names, into a new folder.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

from turret_adapters.errors import listing, quote
from turret_server.errors import BadRequest, FetchFailed, NotFound, Unprocessable
from turret_server.sources.cached import WANTED, WEIGHTS, FetchLimits, cached, keep, staging

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_PIECE = 1 << 20
_FIX = "Pack the adapter's folder again: its *.safetensors, *.gguf and *.json files are read."
# What the standard library raises on bytes that make no sense; NotImplementedError: compressed in a
# way that it does not know, RuntimeError: nested too deeply.
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, gzip.BadGzipFile),
    *(EOFError, ValueError, NotImplementedError, RuntimeError),
)


@dataclass(frozen=True, slots=True)
class _Member:
    """One entry of an archive: why it is refused (if so), and how it is read."""

    name: str
    size: int
    is_file: bool
    problem: str | None
    open: Callable[[], IO[bytes] | None]


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


class _ShortReads:
    """A file of which no single read is long.

    The readers of the standard library take the directory of a zip, or the header of a tar
    member, in one read of whatever length the archive declares.
    """

    def __init__(self, file: _Readable) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(_PIECE + 1 if size < 0 else min(size, _PIECE + 1))
        if len(data) > _PIECE:
            raise tarfile.ReadError("its directory is too long")
        return data

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """The file is closed by whom it belongs to."""


def is_archive(name: str) -> bool:
    """Does a file's or URL's name say that it is an archive?"""
    return name.lower().endswith(SUFFIXES)


def unpack(path: Path, limits: FetchLimits, source: str | None = None) -> Path:
    """The folder with the adapter of an archive, unpacked unless it was before.

    Args:
        path: the archive, with every link followed.
        limits: bounds on what it holds.
        source: what to call it in messages, instead of its path.

    Returns:
        A folder in the cache, named by the SHA-256 of the archive.

    Raises:
        NotFound: no such file.
        BadRequest: it is damaged or hostile, or holds no adapter.
        Unprocessable: it is larger than allowed.
    """
    what = f"the archive {quote(source or str(path))} was not unpacked"
    with ExitStack() as stack:
        file = stack.enter_context(_open(path, what))
        address = hashlib.file_digest(file, "sha256").hexdigest()
        if (known := cached(address)) is not None:
            return known
        try:
            members = _members(file, path.name.lower(), stack)
            taken = _choose(members, os.fstat(file.fileno()).st_size, limits, what)
            with staging() as folder:
                into = folder / address
                into.mkdir()
                for member in taken:
                    _write(member, into / PurePosixPath(member.name).name, what)
                return keep(into, address)
        except _DAMAGED as error:
            raise BadRequest(what, f"it is damaged ({quote(str(error))})", _FIX) from error
        except OSError as error:  # a seek to nowhere, or the disk
            why = f"it is damaged, or the cache cannot be written ({error.strerror or error})"
            raise FetchFailed(what, why, "Check the archive, and the disk of the cache.") from error


def _open(path: Path, what: str) -> io.BufferedReader:
    try:
        # As AdapterFiles opens its files: no link that was put there since, no wait for a FIFO.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        file = os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb")
    except OSError as error:
        why = f"it cannot be read ({error.strerror})"
        raise NotFound(what, why, "Name an archive that exists.") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BadRequest(what, "it is not a regular file", "Name an archive.")
    return file


def _members(file: io.BufferedReader, name: str, stack: ExitStack) -> Iterator[_Member]:
    file.seek(0)
    if name.endswith(".zip"):
        return _zip_members(stack.enter_context(zipfile.ZipFile(_short(file))))
    plain = file if name.endswith(".tar") else stack.enter_context(gzip.GzipFile(fileobj=file))
    return _tar_members(stack.enter_context(tarfile.open(fileobj=_short(plain), mode="r:")))


def _short(file: _Readable) -> IO[bytes]:
    return cast(IO[bytes], _ShortReads(file))


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        problem = None
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is a link or a device"
        elif info.flag_bits & 1:
            problem = "is encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = "is compressed with another method than deflate"
        yield _Member(
            info.filename,
            info.file_size,
            not info.is_dir(),
            problem,
            lambda info=info: archive.open(info),
        )


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    while (info := archive.next()) is not None:
        is_plain = info.isdir() or (info.isreg() and not info.issparse())
        yield _Member(
            info.name,
            info.size,
            info.isreg(),
            None if is_plain else "is a link, a device or sparse",
            lambda info=info: archive.extractfile(info),
        )


def _choose(
    members: Iterator[_Member], archive_bytes: int, limits: FetchLimits, what: str
) -> list[_Member]:
    """The members that make up the one adapter."""
    ratio_bytes = max(limits.ratio_from, limits.max_ratio * archive_bytes)
    max_bytes = min(limits.max_bytes, ratio_bytes)
    files: dict[PurePosixPath, _Member] = {}
    total = count = 0
    for member in members:
        total, count = total + member.size, count + 1
        if problem := member.problem or _name_problem(member.name) or _size_problem(member.size):
            raise BadRequest(what, f"{quote(member.name)} {problem}", _FIX)
        if count > limits.max_files or total > max_bytes:
            raise Unprocessable(
                what,
                f"its {archive_bytes:,} bytes unpack to more than {limits.max_files} files or "
                f"{max_bytes:,} bytes",
                "Unpack it yourself and name the folder.",
            )
        path = PurePosixPath(member.name)
        if not member.is_file or any(part.startswith((".", "__MACOSX")) for part in path.parts):
            continue
        if path in files:
            raise BadRequest(what, f"it holds {quote(member.name)} twice", _FIX)
        files[path] = member
    folder = _adapter_folder(list(files), what)
    return [m for path, m in files.items() if path.parent == folder and path.suffix in WANTED]


def _adapter_folder(paths: list[PurePosixPath], what: str) -> PurePosixPath:
    """The uppermost folder with weights: others below it are checkpoints of its training."""
    folders = {path.parent for path in paths if path.suffix in WEIGHTS}
    depth = min((len(folder.parts) for folder in folders), default=0)
    found = sorted(folder for folder in folders if len(folder.parts) == depth)
    if not found:
        held = listing(sorted(map(str, paths))) or "nothing"
        raise BadRequest(
            what,
            f"it holds no *.safetensors and no *.gguf, but {held}",
            "Pack the adapter's folder, with its weights in safetensors; pickles are never read.",
        )
    if len(found) > 1:
        raise BadRequest(
            what,
            f"it holds several adapters, in {listing(list(map(str, found)))}",
            "Pack each by itself.",
        )
    return found[0]


def _name_problem(name: str) -> str | None:
    if not name or "\\" in name or any(ord(character) < 32 for character in name):
        return "is not a portable name"
    if name.startswith("/") or name[1:2] == ":":
        return "is an absolute path"
    return "leads out of the archive" if ".." in PurePosixPath(name).parts else None


def _size_problem(size: int) -> str | None:
    return "declares a negative size" if size < 0 else None


def _write(member: _Member, path: Path, what: str) -> None:
    source = member.open()
    assert source is not None, "it is a regular file"
    left = member.size
    with source, path.open("xb") as target:
        while piece := source.read(_PIECE):
            left -= len(piece)
            if left < 0:
                break
            target.write(piece)
    if left:
        raise BadRequest(what, f"{quote(member.name)} is not as long as it declares", _FIX)
