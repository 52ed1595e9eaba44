"""Names of base models, as adapters and servers write them."""

from __future__ import annotations


def same_model(named: str, served: str) -> bool:
    """Do two names mean one model? Owners, folders and case do not count."""
    return _last_part(named) == _last_part(served)


def _last_part(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].lower()
