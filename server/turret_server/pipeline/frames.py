"""Messages over a pipe: four bytes of length, then the payload."""

from __future__ import annotations

import struct
from typing import IO

HEAD = struct.Struct("<I")


def write_frame(stream: IO[bytes], payload: bytes) -> None:
    """Write one message."""
    stream.write(HEAD.pack(len(payload)) + payload)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """Read one message; None when the other side is gone."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (length,) = HEAD.unpack(head)
    payload = stream.read(length)
    return payload if len(payload) == length else None
