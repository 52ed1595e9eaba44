"""Why an adapter is refused. The server maps these to HTTP statuses."""

from __future__ import annotations


class AdapterError(Exception):
    """An adapter that cannot be served: what, why, fix (see turret_server.errors)."""

    def __init__(self, what: str, why: str, fix: str):
        super().__init__(what, why, fix)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        return f"{self.what.rstrip('.')}: {self.why.rstrip('.')}. {self.fix}"


class AdapterNotFound(AdapterError):
    """No such folder, or no adapter in it."""


class AdapterForbidden(AdapterError):
    """The path leads outside the folders that may be read."""


class AdapterMalformed(AdapterError):
    """Truncated, hostile or inconsistent files."""


class AdapterChanged(AdapterError):
    """Its files are no longer those that are served."""


class AdapterUnsupported(AdapterError):
    """Well formed, but it cannot be served exactly on this base model."""


def quote(value: object, limit: int = 160) -> str:
    """`repr(value)` cut to `limit` characters: a name in a hostile file may be megabytes long."""
    if isinstance(value, str) and len(value) > limit:
        value = value[:limit] + "…"
    text = repr(value)
    return text if len(text) <= limit + 8 else text[:limit] + "…"


def listing(values: list[str], limit: int = 6) -> str:
    """The first values, quoted, and how many more there are."""
    shown = ", ".join(quote(value) for value in values[:limit])
    return shown if len(values) <= limit else f"{shown} and {len(values) - limit} more"
