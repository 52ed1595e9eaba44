"""One virtual environment per client, made once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from turret_server.cache import cache_root

_MARK = "requirements.txt"


def client_python(name: str, requirements: Sequence[str]) -> Path:
    """The interpreter of a client's environment, which is made anew when its pins changed.

    Args:
        name: of the client; its folder in the cache.
        requirements: of pip; none: the interpreter that runs this serves.

    Raises:
        CalledProcessError: pip failed; it has said why.
    """
    if not requirements:
        return Path(sys.executable)
    folder = cache_root() / "acceptance" / name
    mark, python = folder / _MARK, folder / "bin" / "python"
    pins = "".join(f"{requirement}\n" for requirement in requirements)
    if mark.is_file() and mark.read_text() == pins:
        return python
    print(f"installing {', '.join(requirements)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
    mark.write_text(pins)
    return python
