"""Folders of fetched adapters in the cache, named by their content and never changed.

Whoever reads one holds it, and what nobody holds may be removed: see `shrink`. The time of change
of a folder is that of its last use.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from turret_server.cache import cache_root
from turret_server.sources.holds import Holds
from turret_server.telemetry.logging import logger

# What the readers of adapters read. Nothing else is fetched: no pickle, no code.
WANTED = (".safetensors", ".gguf", ".json")
WEIGHTS = (".safetensors", ".gguf")
_ADDRESS = re.compile(r"[0-9a-f]{64}")
_STAGING = ".staging-"
_ABANDONED_S = 86_400.0  # age of a staging folder whose process must have died

_holds_by_root: dict[Path, Holds] = {}
_guard = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """How much one adapter may bring, and all of them keep.

    Attributes:
        max_bytes: of its files, unpacked.
        max_files: in an archive or a remote folder, those that are not taken included.
        max_ratio: of an archive's unpacked bytes to its own: tensors hardly shrink, bombs do.
        ratio_from: unpacked bytes below which the ratio does not matter.
        max_s: seconds that a download may take.
        cache_bytes: of all fetched adapters together, see `shrink`; None for any number.
    """

    max_bytes: int = 8 << 30
    max_files: int = 1024
    max_ratio: int = 100
    ratio_from: int = 64 << 20
    max_s: float = 1800.0
    cache_bytes: int | None = None


def adapters_folder() -> Path:
    """Where fetched adapters lie; made if need be."""
    folder = _root()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached(address: str) -> Path | None:
    """The folder of this content, held from now on, if it was fetched before."""
    folder = adapters_folder() / address
    return folder if hold(folder) else None


@contextmanager
def staging() -> Iterator[Path]:
    """An empty folder beside the cached ones; what is not kept of it is removed."""
    folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=adapters_folder()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep(staged: Path, address: str) -> Path:
    """Give a complete folder its place in the cache, in one step; it is held from now on."""
    folder = adapters_folder() / address

    def put() -> bool:
        try:
            staged.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another fetch of the same content was first
                raise
        return True

    _holds().hold(address, put)
    _touch(folder)
    return folder


def hold(folder: str | Path) -> bool:
    """Keep a folder in the cache until `release`, in every process; False where it is gone.

    A folder elsewhere is nobody's to remove.
    """
    path = Path(folder)
    if not _is_cached(path):
        return path.is_dir()
    is_there = _holds().hold(path.name, path.is_dir)
    if is_there:
        _touch(path)
    return is_there


def release(folder: str | Path) -> None:
    """Undo one `hold`, `cached` or `keep`."""
    path = Path(folder)
    if _is_cached(path):
        _touch(path)
        _holds().release(path.name)


def shrink(max_bytes: int) -> None:
    """Remove what was used least recently until the rest fits, and what crashes left behind.

    What any process holds counts, and stays. A cache that cannot be written is left as it is.
    """
    try:
        removed = _shrink(_root(), max_bytes)
    except OSError as error:
        fields = {"folder": str(_root()), "error": str(error)}
        logger.warning("adapter_cache_not_shrunk", extra={"fields": fields})
        return
    if removed:
        logger.info("adapter_cache_shrunk", extra={"fields": {"removed": removed}})


def _shrink(root: Path, max_bytes: int) -> list[str]:
    """As `shrink`; returns the addresses that are gone."""
    found: list[tuple[float, int, Path]] = []
    for path in root.iterdir() if root.is_dir() else ():
        with suppress(OSError):  # removed meanwhile, or no folder
            changed = path.stat().st_mtime
            if _ADDRESS.fullmatch(path.name):
                found.append((changed, _num_bytes(path), path))
            elif path.name.startswith(_STAGING) and time.time() - changed > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)
    total, removed = sum(num_bytes for _, num_bytes, _ in found), []
    if total <= max_bytes:
        return []
    with staging() as trash:
        for _, num_bytes, path in sorted(found):
            if total <= max_bytes:
                break
            with suppress(FileNotFoundError):  # another process was faster
                if _holds().remove(path.name, lambda path=path: path.rename(trash / path.name)):
                    total -= num_bytes
                    removed.append(path.name)
    return removed


def _root() -> Path:
    return cache_root() / "adapters"


def _holds() -> Holds:
    root = adapters_folder()
    with _guard:
        if root not in _holds_by_root:
            _holds_by_root[root] = Holds(root.with_suffix(".locks"))
        return _holds_by_root[root]


def _is_cached(path: Path) -> bool:
    is_address = _ADDRESS.fullmatch(path.name) is not None
    return is_address and path.parent.resolve() == _root().resolve()


def _touch(folder: Path) -> None:
    with suppress(OSError):  # gone, or read-only
        os.utime(folder)


def _num_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
