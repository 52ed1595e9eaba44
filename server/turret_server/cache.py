"""Where Turret keeps files that it can make again."""

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
