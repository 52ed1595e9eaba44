from __future__ import annotations

import subprocess
import sys

import turret_client


def test_needs_nothing_but_httpx2() -> None:
    """Neither torch, nor our server, nor its libraries are touched."""
    code = (
        "import sys, turret_client; "
        "print(*{name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'numpy', 'turret_server', 'turret_adapters', 'pydantic', 'msgspec', 'aiohttp'})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_every_public_name_exists() -> None:
    assert [name for name in turret_client.__all__ if not hasattr(turret_client, name)] == []
