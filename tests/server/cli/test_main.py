"""The command as a whole."""

from __future__ import annotations

import subprocess
import sys

# Of one command or another: all would start later by what these take.
HEAVY = {"aiohttp", "fastapi", "numpy", "ray", "sqlalchemy", "torch", "uvicorn"}


def test_a_command_loads_nothing_that_only_others_need():
    loaded = "import sys, turret_server.cli.main; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert not HEAVY & set(run.stdout.split())
