"""Pages drawn as text: each character of a line is ten wide, each line twenty high."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

import pytest

from turret_server.pipeline.documents.layout.text import PageText
from turret_server.pipeline.documents.page import Page, Word, upright

Draw: TypeAlias = Callable[[str], tuple[Page, PageText]]


def draw_page(text: str) -> tuple[Page, PageText]:
    words: list[Word] = []
    spans: list[tuple[int, int]] = []
    start = 0
    for row, line in enumerate(text.split("\n")):
        for match in re.finditer(r"[^ ]+", line):
            left, right = match.start() * 10, match.end() * 10
            words.append(Word(match[0], upright(left, row * 20, right, row * 20 + 14)))
            spans.append((start + match.start(), start + match.end()))
        start += len(line) + 1
    return Page(words, 1000, 1000), PageText(text, spans)


@pytest.fixture
def draw() -> Draw:
    return draw_page
