"""Folders of the peers below Turret's cache, and the virtual environments in them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from turret_server.cache import cache_root

# The PyTorch that all servers share: a comparison of servers, not of PyTorch releases. On
# machines without a GPU, point pip at the CPU builds of PyTorch first.
TORCH = "torch==2.13.0"


def peer_folder(name: str) -> Path:
    """Return the folder of one peer, made if it is missing."""
    folder = cache_root() / "peers" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def venv_python(folder: Path) -> Path:
    """Return the Python of the peer's virtual environment, which need not exist yet."""
    return folder / "venv" / "bin" / "python"


def make_venv(folder: Path) -> Path:
    """Make the peer's virtual environment if it is missing; return its Python."""
    python = venv_python(folder)
    if not python.exists():
        run([sys.executable, "-m", "venv", str(folder / "venv")])
    return python


def pip(python: Path, *words: str) -> None:
    """Run pip of a virtual environment."""
    run([str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *words])


def package_versions(python: Path, *packages: str) -> dict[str, str]:
    """Return the versions of packages in a virtual environment."""
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    done = subprocess.run(
        [str(python), "-c", code, *packages], check=True, capture_output=True, text=True
    )
    return dict(zip(packages, done.stdout.split(), strict=True))


def run(argv: Sequence[str], log: Path | None = None) -> None:
    """Run a command to its end, at low priority; its output goes to `log`, or is in sight.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    print("+", " ".join(argv), flush=True)
    if log is None:
        subprocess.run(["nice", "-n", "15", *argv], check=True)
        return
    with log.open("wb") as output:
        subprocess.run(
            ["nice", "-n", "15", *argv], check=True, stdout=output, stderr=subprocess.STDOUT
        )
