"""The cache of fetched adapters: what is used stays, what was used last goes last."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.server.sources.test_archive import zipped

from turret_server.sources import cached
from turret_server.sources.adapter import AdapterSources
from turret_server.sources.cached import FetchLimits, hold, keep, release, shrink, staging

SIZE = 1000
Put = Callable[[int], Path]


@pytest.fixture
def put(cache: Path) -> Put:
    """Cache a folder of SIZE bytes, used last in this second of 1970; nobody holds it."""

    def put(number: int) -> Path:
        with staging() as scratch:
            (scratch / "new").mkdir()
            (scratch / "new" / "adapter_model.safetensors").write_bytes(bytes(SIZE))
            folder = keep(scratch / "new", f"{number:x}".ljust(64, "0"))
        release(folder)
        os.utime(folder, (number, number))
        return folder

    return put


@contextmanager
def another_process(code: str) -> Iterator[subprocess.Popen[str]]:
    """Runs the code, and then waits to be killed."""
    code = (
        f"import sys, time; from turret_server.sources import cached; {code}; print(1, flush=1); "
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(60)"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "1"
        yield process
    finally:
        process.kill()
        process.wait()


def left(*folders: Path) -> list[bool]:
    return [folder.exists() for folder in folders]


def test_what_was_used_least_recently_goes_first(put: Put, cache: Path):
    old, new, older = put(2), put(3), put(1)
    shrink(3 * SIZE)
    assert left(older, old, new) == [True, True, True]
    shrink(2 * SIZE)
    assert left(older, old, new) == [False, True, True]
    shrink(SIZE + SIZE // 2)
    assert left(old, new) == [False, True]
    shrink(0)
    assert list(cache.iterdir()) == []


def test_what_is_held_stays_and_counts(put: Put):
    old, new = put(1), put(2)
    assert hold(old)
    assert hold(old)
    os.utime(old, (1, 1))
    shrink(SIZE)
    assert left(old, new) == [True, False]
    release(old)
    shrink(0)
    assert left(old) == [True]
    release(old)
    release(old)  # once too often is no harm
    shrink(0)
    assert left(old) == [False]
    assert not hold(old)


def test_holding_and_releasing_are_uses(put: Put):
    first, second, third = put(1), put(2), put(3)
    hold(first)
    os.utime(first, (1, 1))
    release(first)
    hold(second)
    release(second)
    shrink(2 * SIZE)
    assert left(first, second, third) == [True, True, False]


def test_what_another_process_holds_stays_until_it_dies(put: Put):
    theirs, ours = put(1), put(2)
    with another_process(f"assert cached.hold({str(theirs)!r})"):
        shrink(0)
        assert left(theirs, ours) == [True, False]
        assert hold(theirs)  # several may
        release(theirs)
        shrink(0)
        assert left(theirs) == [True]
    shrink(0)
    assert left(theirs) == [False]


def test_another_process_removes_nothing_of_ours(put: Put):
    theirs, ours = put(1), put(2)
    assert hold(ours)
    with another_process("cached.shrink(0)"):
        assert left(theirs, ours) == [False, True]
    release(ours)


def test_nothing_is_removed_where_locks_do_not_work(put: Put, monkeypatch: pytest.MonkeyPatch):
    folder = put(1)

    def refuse(*args: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    assert hold(folder)
    release(folder)
    shrink(0)
    assert left(folder) == [True]


def test_other_folders_are_nobodys_to_remove(put: Put, cache: Path, tmp_path: Path):
    put(1)
    own = tmp_path / ("a" * 64)
    for folder in (cache / "mine", own):
        folder.mkdir()
        (folder / "file").write_bytes(bytes(SIZE))
        assert hold(folder)
        release(folder)
    assert not hold(tmp_path / "nothing")
    shrink(0)
    assert left(cache / "mine", own) == [True, True]


def test_what_a_crash_left_is_removed_after_a_day(put: Put, cache: Path):
    put(1)
    stale, fresh = cache / ".staging-old", cache / ".staging-new"
    for folder in (stale, fresh):
        folder.mkdir()
    os.utime(stale, (time.time() - 90_000,) * 2)
    shrink(SIZE)
    assert left(stale, fresh) == [False, True]


def test_without_a_cache_none_is_made(cache: Path):
    shrink(0)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_left(put: Put, monkeypatch: pytest.MonkeyPatch):
    folder = put(1)

    def refuse(*args: object, **options: object) -> str:
        raise PermissionError("read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    shrink(0)
    assert left(folder) == [True]


def test_a_fetch_makes_room_and_its_own_stays(tmp_path: Path, put: Put, cache: Path):
    old = put(1)
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256))}
    archive = zipped(tmp_path / "a.zip", files)
    sources = AdapterSources(limits=FetchLimits(cache_bytes=SIZE))
    local = sources.fetch(sources.locate(str(archive), confined=False))
    assert left(old, Path(local.folder)) == [False, True]
    sources = AdapterSources(limits=FetchLimits(cache_bytes=0))
    again = sources.fetch(sources.locate(str(archive), confined=False))
    assert again == local
    for _ in range(2):
        assert left(Path(local.folder)) == [True]
        release(local.folder)
        cached.shrink(0)
    assert left(Path(local.folder)) == [False]
    assert sources.fetch(sources.locate(str(archive), confined=False)) == local


def test_a_cached_folder_named_by_its_path_is_held_too(put: Put, cache: Path):
    folder = put(1)
    sources = AdapterSources([cache.parent])
    sources.fetch(sources.locate(str(folder), confined=True))
    shrink(0)
    assert left(folder) == [True]
    release(folder)
