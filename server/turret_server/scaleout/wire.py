"""What passes between the entrance and a replica."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

Headers = tuple[tuple[bytes, bytes], ...]

# They concern one connection (RFC 9110, 7.6.1); the length is told anew.
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding"}
    | {b"upgrade", b"content-length"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """A request, whole.

    Attributes:
        method: of HTTP.
        path: with its percent escapes.
        query: what follows the question mark.
        headers: as received, without those of the connection.
        body: bounded by the entrance.
        client: address and port of the client; None where it is not known.
        names: adapters that it needs.
        avoid: replicas that failed it.
    """

    method: str
    path: bytes
    query: bytes = b""
    headers: Headers = ()
    body: bytes = b""
    client: tuple[str, int] | None = None
    names: tuple[str, ...] = ()
    avoid: frozenset[str] = frozenset()

    @property
    def route(self) -> str:
        """The path without its percent escapes, as routes see it."""
        return unquote_to_bytes(self.path).decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Accepted:
    """The first thing a replica says: it is alive and has the request."""

    replica: str


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers; the body follows as bytes."""

    status: int
    headers: Headers

    @property
    def is_stream(self) -> bool:
        """Server-sent events."""
        return any(
            name == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in self.headers
        )


Item = Accepted | Head | bytes
