"""LATIN, as published: the layout of "LATIN-Prompt" (Wang et al., 2023), its defects included.

Kept for comparison. Consecutive segments form a line while each one's vertical midpoint lies inside
the one before it; one character width serves the whole page; a segment that comes too late for its
column is glued to the one before. Two departures: the input stays as it is (the published code
empties its lists), and no column lies beyond `MAX_COLUMN`, so that one box far off the page cannot
ask for a line of millions of spaces.
"""

from __future__ import annotations

from itertools import pairwise

from turret_server.pipeline.documents.layout.text import PageText, TextBuilder, collapse
from turret_server.pipeline.documents.page import Page

MAX_COLUMN = 2000

Box = tuple[float, float, float, float]
Segment = tuple[int, str, Box]


def lay_out_latin(page: Page) -> PageText:
    """The page's words by LATIN's rules, in the order of the source."""
    segments = [
        (index, text, word.box)
        for index, word in enumerate(page.words)
        if (text := collapse(word.text))
    ]
    lines = _lines(segments)
    char_width = _char_width(lines)
    builder = TextBuilder(len(page.words))
    for number, line in enumerate(lines):
        if number:
            builder.newline()
        length = 0
        for index, text, box in line:
            # Truncation towards zero, and no space at all where the column has been passed.
            column = int(min(max(box[0] / char_width, 0.0), MAX_COLUMN))
            builder.space(column - length)
            builder.word(index, text)
            length = max(column, length) + len(text)
    return builder.finish()


def _lines(segments: list[Segment]) -> list[list[Segment]]:
    """Consecutive segments that share a line."""
    lines = [segments[:1]] if segments else []
    for before, segment in pairwise(segments):
        if _same_line(before[2], segment[2]):
            lines[-1].append(segment)
        else:
            lines.append([segment])
    return lines


def _same_line(a: Box, b: Box) -> bool:
    """Whether each box's vertical midpoint lies strictly inside the other."""
    middle_a, middle_b = (a[1] + a[3]) / 2, (b[1] + b[3]) / 2
    return b[1] < middle_a < b[3] and a[1] < middle_b < a[3]


def _char_width(lines: list[list[Segment]]) -> float:
    """Width of a character in the line that has most of them; in the last such line."""
    best, width = -1, 1.0
    for line in lines:
        count = sum(len(text) for _, text, _ in line)
        if count >= best:
            best = count
            left, right = min(box[0] for *_, box in line), max(box[2] for *_, box in line)
            width = (right - left) / count
    return width if width > 0 else 1.0
