"""Archives are unpacked whole, or refused with nothing written."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from turret_server.errors import BadRequest, FetchFailed, NotFound, Unprocessable
from turret_server.sources.archive import is_archive, unpack
from turret_server.sources.cached import FetchLimits

LIMITS = FetchLimits()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:" if path.suffix == ".tar" else "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return path


PACKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "a.zip": zipped,
    "a.tar": tarred,
    "a.tar.gz": tarred,
    "a.tgz": tarred,
}


@pytest.fixture(params=PACKERS)
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    return lambda files: PACKERS[request.param](tmp_path / request.param, files)


def unpacked(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in unpack(path, LIMITS).iterdir()}


def assert_nothing_left(cache: Path) -> None:
    assert not cache.exists() or list(cache.iterdir()) == []


def test_names_say_what_an_archive_is():
    names = ["a.zip", "a.tar", "A.TAR.GZ", "a.tgz", "a.rar", "zip", "a.zip/b"]
    assert [is_archive(name) for name in names] == [True] * 4 + [False] * 3


def test_an_adapter_is_unpacked(pack, files, cache: Path):
    path = pack(files)
    assert unpacked(path) == files
    assert [folder.parent for folder in cache.iterdir()] == [cache]


def test_only_what_is_read_is_unpacked(pack, files):
    extra = {"README.md": b"#", "training_args.bin": b"pickle", "x.py": b"", ".hidden.json": b""}
    assert unpacked(pack(files | extra)) == files


def test_a_folder_inside_is_found_and_its_checkpoints_are_not(pack, files):
    inner = {f"sql/{name}": data for name, data in files.items()}
    checkpoint = {f"sql/checkpoint-5/{name}": b"old" for name in files}
    assert unpacked(pack({"readme.json": b"{}", **checkpoint, **inner})) == files


def test_the_same_archive_is_unpacked_once(pack, files):
    path = pack(files)
    folder = unpack(path, LIMITS)
    inode = (folder / "adapter_config.json").stat().st_ino
    assert unpack(path, LIMITS) == folder
    assert (folder / "adapter_config.json").stat().st_ino == inode
    path.write_bytes(pack(files | {"adapter_config.json": b"[]"}).read_bytes())
    assert unpack(path, LIMITS) != folder


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/adapter_config.json", "is an absolute path"),
        ("../adapter_config.json", "leads out of the archive"),
        ("a/../../adapter_config.json", "leads out of the archive"),
        ("C:/adapter_config.json", "is an absolute path"),
        ("a\\..\\b.json", "is not a portable name"),
    ],
)
def test_names_that_climb_refuse_the_archive(pack, files, cache: Path, name: str, why: str):
    with pytest.raises(BadRequest, match=why):
        unpack(pack(files | {name: b"x"}), LIMITS)
    assert_nothing_left(cache)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_refuse_a_tar(tmp_path: Path, files, cache: Path, kind: bytes):
    link = tarfile.TarInfo("link.json")
    link.type, link.linkname = kind, "/etc/passwd"
    with pytest.raises(BadRequest, match="is a link, a device or sparse"):
        unpack(tarred(tmp_path / "a.tar", files, link), LIMITS)
    assert_nothing_left(cache)


def test_links_refuse_a_zip(tmp_path: Path, files, cache: Path):
    path = zipped(tmp_path / "a.zip", files)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("link.json")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(BadRequest, match="is a link or a device"):
        unpack(path, LIMITS)
    assert_nothing_left(cache)


def test_a_bomb_is_refused_before_a_byte_is_written(pack, files, cache: Path):
    path = pack(files | {"zeros.json": bytes(4 << 20)})
    limits = FetchLimits(ratio_from=1 << 20, max_ratio=2)
    if path.suffix == ".tar":  # it does not shrink
        limits = FetchLimits(max_bytes=1 << 20)
    with pytest.raises(Unprocessable, match="unpack to more than"):
        unpack(path, limits)
    assert_nothing_left(cache)


def test_too_many_files_are_refused(pack, files, cache: Path):
    with pytest.raises(Unprocessable, match="unpack to more than 3 files"):
        unpack(pack(files | {"a.txt": b"", "b.txt": b""}), FetchLimits(max_files=3))
    assert_nothing_left(cache)


def test_a_directory_that_would_fill_the_memory_is_refused(tmp_path: Path, cache: Path):
    """Extended headers are read whole; this one is 64 MiB of zeros in 64 kB."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 64 << 20
    path = tmp_path / "a.tgz"
    with gzip.open(path, "wb") as file:
        file.write(info.tobuf())
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(BadRequest, match="directory is too long"):
        unpack(path, LIMITS)
    assert_nothing_left(cache)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "but nothing"),
        ({"adapter_config.json": b"{}", "adapter_model.bin": b""}, "adapter_model.bin"),
        ({"a/x.safetensors": b"", "b/x.safetensors": b""}, "several adapters, in 'a', 'b'"),
    ],
)
def test_what_is_no_adapter_is_refused(pack, files: dict[str, bytes], why: str, cache: Path):
    with pytest.raises(BadRequest, match=why):
        unpack(pack(files), LIMITS)
    assert_nothing_left(cache)


def test_a_file_that_is_there_twice_is_refused(tmp_path: Path, files, cache: Path):
    path = tarred(tmp_path / "a.tar", files)
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("adapter_config.json"))
    with pytest.raises(BadRequest, match="twice"):
        unpack(path, LIMITS)
    assert_nothing_left(cache)


def test_damaged_archives_are_refused_and_leave_nothing(pack, files, cache: Path):
    path = pack(files)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data) // 2, len(data) + 1)])
        try:
            folder = unpack(path, LIMITS)
        except (BadRequest, FetchFailed):
            pass
        else:  # what was hit is not checked by the format, or is not read
            assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors"}
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        assert_nothing_left(cache)


@pytest.mark.parametrize("kind", ["missing", "fifo", "folder", "link"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str):
    path = tmp_path / "a.zip"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    with pytest.raises(BadRequest if kind == "fifo" else NotFound):
        unpack(path, LIMITS)
