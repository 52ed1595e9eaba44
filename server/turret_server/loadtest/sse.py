"""A parser of server-sent events, fed with network chunks of any size."""

from __future__ import annotations


class SseParser:
    """Collects the `data` of events; other fields and comments are dropped.

    Follows the event-stream grammar of the WHATWG HTML standard, but for lone carriage returns as
    line ends, which no server here sends. Bytes in, bytes out: a UTF-8 character split over
    chunks needs no care, because lines are cut at newlines only.
    """

    __slots__ = ("_data", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes; return the data of each event they complete."""
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        events: list[bytes] = []
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data.clear()
            elif line.startswith(b"data:"):
                value = line[5:]
                self._data.append(value[1:] if value.startswith(b" ") else value)
        return events
