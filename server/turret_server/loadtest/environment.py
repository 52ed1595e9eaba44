"""Where a result was measured: machine, versions, commit, command, load of others."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp

_SECRET_FLAGS = ("--api-key", "--tenant")
_PACKAGES = ("turret", "aiohttp", "uvloop", "msgspec", "numpy")


def describe_environment() -> dict[str, Any]:
    """Return machine, versions, commit and command as JSON."""
    return {
        "machine": machine(),
        "versions": {"python": platform.python_version(), **_versions()},
        "git_commit": git_commit(Path.cwd()),
        "command": redacted(sys.argv),
    }


def machine() -> dict[str, Any]:
    """Return CPU model, cores, memory and operating system."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cores_total": os.cpu_count(),
        "memory_gb": round(pages * page_bytes / 1e9, 1),
        "os": platform.platform(),
        # Above the generator's own share this tells of neighbours that skew the numbers.
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in `folder`, "-dirty" if changed; None outside git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "-uno") else commit


def redacted(argv: Sequence[str]) -> list[str]:
    """Return a command line without the values of flags that carry keys, and without the home.

    Paths below the working directory are told from there.
    """
    here, home = f"{Path.cwd()}/", str(Path.home())
    shown: list[str] = []
    hide_next = False
    for word in (word.replace(here, "").replace(home, "~") for word in argv):
        flag, equals, _ = word.partition("=")
        if hide_next:
            shown.append("***")
        elif equals and flag in _SECRET_FLAGS:
            shown.append(f"{flag}=***")
        else:
            shown.append(word)
        hide_next = word in _SECRET_FLAGS
    return shown


async def server_version(url: str, api_key: str | None) -> Any:
    """Ask the server for `/version`; None where it has no such route."""
    return await _get_json(f"{url.rstrip('/')}/version", api_key)


async def served_models(url: str, api_key: str | None) -> list[str]:
    """Return the names that `/v1/models` lists; empty where it does not answer."""
    listing = await _get_json(f"{url.rstrip('/')}/v1/models", api_key)
    try:
        return [str(card["id"]) for card in listing["data"]]
    except (TypeError, KeyError):
        return []


async def _get_json(url: str, api_key: str | None) -> Any:
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, headers=headers) as response,
        ):
            return await response.json(content_type=None) if response.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
