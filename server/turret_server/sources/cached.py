"""Folders of fetched adapters in the cache, named by their content and never changed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from turret_server.cache import cache_root

# What the readers of adapters read. Nothing else is fetched: no pickle, no code.
WANTED = (".safetensors", ".gguf", ".json")
WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """How much one adapter may bring.

    Attributes:
        max_bytes: of its files, unpacked.
        max_files: in an archive or a remote folder, those that are not taken included.
        max_ratio: of an archive's unpacked bytes to its own: tensors hardly shrink, bombs do.
        ratio_from: unpacked bytes below which the ratio does not matter.
        max_s: seconds that a download may take.
    """

    max_bytes: int = 8 << 30
    max_files: int = 1024
    max_ratio: int = 100
    ratio_from: int = 64 << 20
    max_s: float = 1800.0


def adapters_folder() -> Path:
    """Where fetched adapters lie; made if need be."""
    folder = cache_root() / "adapters"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached(address: str) -> Path | None:
    """The folder of this content, if it was fetched before."""
    folder = adapters_folder() / address
    return folder if folder.is_dir() else None


@contextmanager
def staging() -> Iterator[Path]:
    """An empty folder beside the cached ones; what is not kept of it is removed."""
    folder = Path(tempfile.mkdtemp(prefix=".staging-", dir=adapters_folder()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep(staged: Path, address: str) -> Path:
    """Give a complete folder its place in the cache, in one step."""
    folder = adapters_folder() / address
    try:
        staged.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another fetch of the same content was first
            raise
    return folder
