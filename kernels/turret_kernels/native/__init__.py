"""The CPU's own kernels: plain C++, compiled once for this processor and cached.

What Triton is on a GPU, these files are on a CPU with AVX-512 bf16 (AMX tiles used where present).
Without such a processor, or without a compiler, `lib` is None and every op takes its torch path.
Set TURRET_NATIVE=0 to force that, TURRET_TILES=0 to do without AMX.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-pthread", "-w")


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    lines = (line.partition(":")[2] for line in text.splitlines() if line.startswith("flags"))
    return set(next(lines, "").split())


def _cache_dir() -> Path:
    base = os.environ.get("TURRET_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "turret"
    )
    return Path(base) / "native"


def _build(compiler: str, flags: set[str]) -> Path:
    sources = sorted(_HERE.glob("*.cpp"))
    digest = hashlib.sha256(" ".join((*_FLAGS, *sorted(flags))).encode())
    for file in [*sources, *sorted(_HERE.glob("*.h"))]:
        digest.update(file.read_bytes())
    target = _cache_dir() / f"turret-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            out = Path(folder) / target.name
            subprocess.run(
                [compiler, *_FLAGS, *map(str, sources), "-o", str(out)],
                check=True,
                capture_output=True,
                text=True,
                timeout=300,
            )
            out.replace(target)  # atomic: two processes may build at once
    return target


def _load() -> ctypes.CDLL | None:
    compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    flags = _cpu_flags()
    if os.environ.get("TURRET_NATIVE") == "0" or "avx512_bf16" not in flags or not compiler:
        return None
    try:
        library = ctypes.CDLL(str(_build(compiler, flags)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        log.warning("CPU kernels not built, using torch instead: %s", detail)
        return None
    _declare(library)
    library.turret_set_threads(len(os.sched_getaffinity(0)))
    return library


def _declare(library: ctypes.CDLL) -> None:
    p, n, i, f = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    signatures: dict[str, list[type]] = {
        "turret_set_threads": [i],
        "turret_pack": [p, p, n, n],
        "turret_linear": [p, n, p, p, p, n, n, n, i, i],
        "turret_linear_int8": [p, n, p, p, p, p, n, n, n, i, i],
        "turret_write_rank_rows": [p, p, p, p, n, n, n, n],
        "turret_low_rank": [p, p, p, n, p, p, p, p, n, n, i, i],
        "turret_rope_and_store": [p, p, p, n, n, n, p, p, p, p, p, n, n, n, n, n],
        "turret_paged_attention": [p, p, n, p, p, p, p, p, n, n, n, n, n, n, f, n, i],
        "turret_rms_norm": [p, p, p, p, i, n, n, n, n, n, f],
        "turret_act_mul": [p, p, n, n, i],
        "turret_act_threshold_mul": [p, p, n, n, i, p, p, p, p, p],
        "turret_threshold": [p, p, n, n, p, p, p, p, p],
        "turret_offset": [p, n, n, n, p, p, p, p, p, p, p, i],
        "turret_scale": [p, n, n, n, p, p, p, p, p, p, p, p, p, i],
        "turret_rotate": [p, p, n, n, p, p, p, p, p, p],
        "turret_sample": [p, p, n, n, p, p, p, p, p],
        "turret_tilted_sums": [p, p, p, n, f],
        "turret_run": [p, n],
        "turret_sparse_delta": [p, n, n, n, p, n, p, p, p, p, p, p, i],
        "turret_row_delta": [p, n, p, n, p, p, p, p, p, p],
        "turret_pack_neurons": [p, p, p, n, n],
        "turret_sparse_mlp": [p, p, p, n, n, n, p, p, p, p, p, p, p, p, p, p, i, i, f],
    }
    for name, argtypes in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = argtypes, None
    library.turret_has_tiles.argtypes, library.turret_has_tiles.restype = [], ctypes.c_int


lib: ctypes.CDLL | None = _load()
TILES: int = lib.turret_has_tiles() if lib and os.environ.get("TURRET_TILES") != "0" else 0


def torch_empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory for a kernel's result."""
    return torch.empty(shape, dtype=dtype)


# Where native kernels get the memory of their results; graph.capture puts its pool here.
allocate: Callable[[tuple[int, ...], torch.dtype], torch.Tensor] = torch_empty


def set_threads(threads: int) -> None:
    """Number of threads the CPU kernels use, the caller's included."""
    if lib:
        lib.turret_set_threads(threads)
