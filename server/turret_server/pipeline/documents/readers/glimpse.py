"""Looking at the outermost parts of content without parsing all of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from xml.parsers import expat

import msgspec

_LAYER = msgspec.json.Decoder(
    dict[str, msgspec.Raw] | list[msgspec.Raw] | str | float | bool | None
)
_MARKUP = 4096  # bytes in which a file of unclear beginning must show what it is
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Glimpse:
    """A JSON value, one layer parsed at a time; or the beginning of XML, HTML or plain text.

    Args:
        content: bytes, or a parsed JSON value.

    Attributes:
        root: name of the outermost element without its namespace, if it is markup.
        head: the first characters, lower case, if it is markup or plain text.
        fault: why it is not JSON, if it begins as if it were.
    """

    def __init__(self, content: Any) -> None:
        self.root = self.head = self.fault = ""
        self._parts: dict[str | int, Glimpse | None] = {}
        self._value = None
        if isinstance(content, msgspec.Raw):
            self._open(content)
        elif isinstance(content, bytes):
            self._look(content)
        else:
            self._value = content

    def _look(self, data: bytes) -> None:
        if data[:_MARKUP].lstrip().startswith((b"{", b"[")) and self._open(data):
            return
        encoding = "utf-16" if data.startswith(_UTF_16) else "utf-8"
        self.head = data[:_MARKUP].decode(encoding, "replace").lstrip("\ufeff \t\r\n").lower()
        if self.head.startswith("<"):
            self.root = root_name(data).rpartition("}")[2]

    def _open(self, data: bytes | msgspec.Raw) -> bool:
        try:
            self._value = _LAYER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.fault = str(error)
            return False
        return True

    def at(self, *path: str | int) -> Glimpse | None:
        """The part of a JSON value at `path`: names and positions; None if there is none."""
        part: Glimpse | None = self
        for step in path:
            if part is None:
                return None
            part = part._step(step)
        return part

    def _step(self, step: str | int) -> Glimpse | None:
        if step not in self._parts:
            value = self._value
            found = None
            if isinstance(step, str):
                if isinstance(value, dict) and step in value:
                    found = Glimpse(_inner(value[step]))
            elif isinstance(value, list | tuple) and len(value) > step:
                found = Glimpse(_inner(value[step]))
            self._parts[step] = found
        return self._parts[step]

    @property
    def keys(self) -> Collection[str]:
        """Of a JSON object; empty for all else."""
        return self._value.keys() if isinstance(self._value, dict) else ()

    @property
    def length(self) -> int | None:
        """Of a JSON array; None for all else."""
        return len(self._value) if isinstance(self._value, list | tuple) else None

    @property
    def is_text(self) -> bool:
        """Whether it is a JSON string."""
        return isinstance(self._value, str)


def _inner(value: Any) -> Any:
    """Bytes cannot stand within a parsed JSON value; nothing in them is to be looked at."""
    return None if isinstance(value, bytes) else value


def root_name(data: bytes) -> str:
    """Name of an XML document's outermost element, as expat writes it; "" if it is not XML.

    Stops there, so that it costs nothing for a long document.
    """
    found: list[str] = []

    def start(name: str, _: dict[str, str]) -> None:
        found.append(name)
        raise StopIteration

    parser = expat.ParserCreate(namespace_separator="}")
    parser.StartElementHandler = start
    try:
        for begin in range(0, len(data), _MARKUP):
            parser.Parse(data[begin : begin + _MARKUP])
    except (StopIteration, expat.ExpatError, ValueError, LookupError):
        pass
    return found[0] if found else ""
