"""Reads one call, `{"name": …, "arguments": …}`, from pieces of text."""

from __future__ import annotations

import json
import re
from typing import NoReturn

_BLANKS = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
_MAX_NAME = 256  # characters
_STRING_MARK = re.compile(r'["\\]')


class Malformed(ValueError):
    """The text is not a call."""


class CallObject:
    """The object of one call while its text arrives.

    It follows the outline of JSON (brackets, strings, commas), which is enough to find where the
    arguments begin and end without parsing twice or recursing. Whether the whole is valid JSON is
    for the caller to ask, once it is complete.

    Attributes:
        name: the function, once it is known.
        has_arguments: whether the arguments have begun.
        done: whether the object is closed.
        raw: all text so far, in pieces.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.has_arguments = False
        self.done = False
        self.raw: list[str] = []
        self._expect = "{"  # or: first key, key, :, value, comma; or "in value", keys included
        self._key: str | None = None  # None while a key is being read
        self._value: list[str] = []  # text of the key or value being read
        self._ready: list[str] = []  # text of the arguments, not yet taken
        self._depth = 0
        self._in_string = self._escaped = False
        self._at = 0  # behind the last character read, also when `feed` raises

    def take_arguments(self) -> str:
        """Return the text of the arguments since the last call."""
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def feed(self, text: str, at: int) -> int:
        """Read from `text[at:]`; return where the object, or the text, ends.

        Raises:
            Malformed: this is no call; `raw` holds what was read of it.
        """
        self._at = at
        try:
            while self._at < len(text) and not self.done:
                read = self._read_value if self._expect == "in value" else self._read_mark
                self._at = read(text, self._at)
        finally:
            self.raw.append(text[at : self._at])
        return self._at

    def _read_mark(self, text: str, at: int) -> int:
        """Read what stands between values; a value's first character is left for later."""
        char = text[at]
        if char in _BLANKS:
            return at + 1
        match self._expect, char:
            case "{", "{":
                self._expect = "first key"
            case ("first key", "}") | ("comma", "}"):
                self._finish()
            case ("first key", '"') | ("key", '"'):
                self._key = None
                self._expect = "in value"
                return at
            case ":", ":":
                self._expect = "value"
            case "comma", ",":
                self._expect = "key"
            case "value", _:
                self._begin_value(char)
                return at
            case _:
                raise Malformed(f"{char!r} where {self._expect!r} should stand")
        return at + 1

    def _begin_value(self, char: str) -> None:
        if char in ",:}]":
            raise Malformed(f"{char!r} where a value should stand")
        if self._key in _ARGUMENTS:
            if self.has_arguments:
                raise Malformed("a second set of arguments")
            self.has_arguments = True
        self._expect = "in value"

    def _read_value(self, text: str, at: int) -> int:
        start = at
        while at < len(text):
            char = text[at]
            if self._in_string:
                if not self._escaped:
                    mark = _STRING_MARK.search(text, at)
                    if mark is None:
                        at = len(text)
                        break
                    at = mark.start()
                    char = text[at]
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
                    if not self._depth:
                        return self._end_value(text, start, at + 1)
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif self._depth:
                if char in "}]":
                    self._depth -= 1
                    if not self._depth:
                        return self._end_value(text, start, at + 1)
            elif char in ",}]" or char in _BLANKS:  # the end of a number, true, false or null
                return self._end_value(text, start, at)
            at += 1
        self._keep(text[start:at])
        return at

    def _keep(self, piece: str) -> None:
        self._value.append(piece)
        if self._key in _ARGUMENTS and self._value[0][:1] != '"':
            self._ready.append(piece)

    def _end_value(self, text: str, start: int, end: int) -> int:
        self._keep(text[start:end])
        self._at = end
        value, self._value = "".join(self._value), []
        if self._key is None:
            self._key = _string(value)
            self._expect = ":"
            return end
        if self._key == "name":
            if self.name is not None:
                raise Malformed("a second name")
            self.name = _string(value)
            if not 0 < len(self.name) <= _MAX_NAME:
                raise Malformed("the name is empty or too long")
        elif self._key in _ARGUMENTS and value.startswith('"'):
            inner = _string(value)  # some models write JSON inside of a JSON string
            self._ready.append(inner if is_json(inner) else value)
        self._expect = "comma"
        return end

    def _finish(self) -> None:
        if self.name is None:
            raise Malformed("it has no name")
        self.done = True


def is_json(text: str) -> bool:
    """Tell whether `text` is valid JSON; Python's reader takes NaN and Infinity for numbers."""
    try:
        json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return False
    return True


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _string(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return value if isinstance(value, str) else _not_a_string(text)


def _not_a_string(text: str) -> NoReturn:
    raise Malformed(f"{text[:40]!r} is not a string")
