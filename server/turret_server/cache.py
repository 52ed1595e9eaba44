"""Where Turret keeps files: those that it can make again, and those that it cannot."""

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the cache folder; it need not exist yet.

    `TURRET_CACHE` names it outright. Otherwise it is `turret` below `XDG_CACHE_HOME`, or below
    `~/.cache` where that is unset or relative (the XDG specification says to ignore those).
    """
    if own := os.environ.get("TURRET_CACHE"):
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not shared.is_absolute():
        shared = Path.home() / ".cache"
    return shared / "turret"


def state_root() -> Path:
    """Return the folder of what must not be lost; it need not exist yet.

    `TURRET_STATE` names it outright. Otherwise it is `turret` below `XDG_STATE_HOME`, or below
    `~/.local/state`, by the same rule.
    """
    if own := os.environ.get("TURRET_STATE"):
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not shared.is_absolute():
        shared = Path.home() / ".local" / "state"
    return shared / "turret"
