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


class AdapterMalformed(AdapterError):
    """Truncated, hostile or inconsistent files."""


class AdapterUnsupported(AdapterError):
    """Well formed, but it cannot be served exactly on this base model."""
