"""What is cited by itself: each line of an answer, or each value of its JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_LINE = re.compile(r"[^\n]+")
_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*+)"(\s*+:)?|-?\d[\d.eE+-]*', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\)?(?:u[0-9a-fA-F]{4}|.)|[^\\]", re.DOTALL)


class Part(NamedTuple):
    """A piece of an answer.

    Attributes:
        text: of the piece.
        places: where in the answer each of its characters is from, and where the last one ends.
        key: of a JSON value: the nearest before it.
    """

    text: str
    places: Sequence[int]
    key: str = ""


def parts(answer: str) -> Iterator[Part]:
    """Return an answer's pieces in order."""
    if not _is_json(answer):
        for match in _LINE.finditer(answer):
            yield Part(match[0], range(match.start(), match.end() + 1))
        return
    key = ""
    for match in _LITERAL.finditer(answer):
        if match[2]:
            key = match[1]
            continue
        group = 0 if match[1] is None else 1
        start, end = match.span(group)
        if "\\" in match[group]:
            yield _unescaped(match[group], start, key)
        else:
            yield Part(match[group], range(start, end + 1), key)


def _is_json(answer: str) -> bool:
    if not answer.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return True


def _unescaped(literal: str, start: int, key: str) -> Part:
    characters: list[str] = []
    places: list[int] = []
    for match in _ESCAPE.finditer(literal):
        text = match[0]
        character = json.loads(f'"{text}"') if text[0] == "\\" else text
        characters.append(character)
        places += [start + match.start()] * len(character)
    return Part("".join(characters), [*places, start + len(literal)], key)
