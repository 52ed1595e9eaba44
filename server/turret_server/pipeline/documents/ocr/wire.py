"""What the pool and its children tell each other, over a pair of pipes."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from turret_server.errors import BadRequest, PayloadTooLarge, TurretError, Unprocessable
from turret_server.pipeline.documents.page import Page

_ERRORS: dict[str, type[TurretError]] = {
    error.__name__: error for error in (BadRequest, Unprocessable, PayloadTooLarge)
}


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Take a document up, in place of the one before. A second frame carries its bytes."""

    kind: str
    ocr: str


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Read one page of it."""

    number: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The child is up."""


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The document can be read, and has so many pages."""

    pages: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """A page."""

    page: Page


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The document or the page cannot be read.

    Attributes:
        error: name of the error.
        details: what went wrong inside, for the log.
        spent: whether the child ends itself now.
    """

    error: str
    what: str
    why: str
    fix: str
    details: str = ""
    spent: bool = False

    @classmethod
    def of(cls, error: TurretError, details: str = "", *, spent: bool = False) -> Refused:
        """As a message."""
        name = type(error).__name__
        return cls(
            name if name in _ERRORS else "Unprocessable",
            error.what,
            error.why,
            error.fix,
            details,
            spent,
        )

    def as_error(self) -> TurretError:
        """As what is raised."""
        return _ERRORS[self.error](self.what, self.why, self.fix)


Request: TypeAlias = Open | Read
Reply: TypeAlias = Ready | Opened | Done | Refused
