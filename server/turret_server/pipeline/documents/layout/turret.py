"""Our layout of a page: its stages in order, and the text they come to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from turret_server.pipeline.documents.layout.bidi import reading_order
from turret_server.pipeline.documents.layout.blocks import find_blocks
from turret_server.pipeline.documents.layout.boxes import Boxes, char_width
from turret_server.pipeline.documents.layout.columns import CELL_GAP, place
from turret_server.pipeline.documents.layout.frame import frames
from turret_server.pipeline.documents.layout.lines import find_lines
from turret_server.pipeline.documents.layout.options import LayoutOptions
from turret_server.pipeline.documents.layout.phrases import Phrase, find_phrases
from turret_server.pipeline.documents.layout.text import PageText, TextBuilder
from turret_server.pipeline.documents.page import Page

# A block is indented by this share of its distance from the margin, and no further than that.
INDENT = 0.3
DEEPEST = 20
# White space between lines, in heights of a line and in usual gaps, that shows as a blank line.
BLANK = 0.8
UNUSUAL = 1.3


@dataclass(frozen=True, slots=True)
class PrintedLine:
    """A line as it is printed.

    Attributes:
        phrases: from left to right.
        starts: the column each begins at, if the one before leaves room.
        gap: white space above it, in heights of a line.
    """

    phrases: list[Phrase]
    starts: list[int]
    gap: float


def lay_out_turret(page: Page, options: LayoutOptions) -> PageText:
    """The page's words in lines and columns; words of another direction below the rest."""
    builder = TextBuilder(len(page.words))
    for number, boxes in enumerate(frames(page, options.mirror)):
        if number:
            builder.newline(1 + min(1, options.max_blank_lines))
        boxes, rows = find_lines(boxes)
        _print(builder, boxes, _set_columns(boxes, rows, options), options)
    return builder.finish()


def _set_columns(boxes: Boxes, rows: list[list[int]], options: LayoutOptions) -> list[PrintedLine]:
    """Gives each phrase its column, block by block."""
    unit = char_width(boxes)
    lines = find_phrases(boxes, rows, unit)
    gaps, bottom = [], float("inf")
    for row in rows:
        gaps.append(float(boxes.top[row].min()) - bottom)
        bottom = float(boxes.bottom[row].max())
    margin = min(line[0].left for line in lines)
    printed: list[PrintedLine] = []
    for block in find_blocks(lines, gaps, unit):
        left = min(line[0].left for line in lines[block])
        indent = min(int((left - margin) / unit * INDENT), DEEPEST)
        for phrases, starts, gap in zip(
            lines[block], place(lines[block], unit), gaps[block], strict=True
        ):
            columns = [min(indent + start, options.max_columns) for start in starts]
            printed.append(PrintedLine(phrases, columns, gap))
    return printed


def _print(
    builder: TextBuilder, boxes: Boxes, lines: list[PrintedLine], options: LayoutOptions
) -> None:
    """Prints phrases at their columns, cells at least two spaces apart."""
    index = boxes.index.tolist()
    usual = float(np.median([line.gap for line in lines[1:]])) if len(lines) > 1 else 0.0
    blank = max(BLANK, UNUSUAL * usual)
    for number, line in enumerate(lines):
        if number:
            blanks = line.gap // blank if line.gap > 0 else 0
            builder.newline(1 + int(min(blanks, options.max_blank_lines)))
        length = 0
        for k, (phrase, start) in enumerate(zip(line.phrases, line.starts, strict=True)):
            space = max(start - length, CELL_GAP if k else 0)
            builder.space(space)
            length += space + phrase.width
            for n, i in enumerate(_as_read(boxes, phrase.words)):
                builder.space(1 if n else 0)
                builder.word(index[i], boxes.text[i])


def _as_read(boxes: Boxes, words: list[int]) -> list[int]:
    """A phrase's words, given from left to right in their frame, in the order of reading."""
    texts = [boxes.text[i] for i in words]
    if boxes.mirrored:
        words, texts = words[::-1], texts[::-1]
    elif all(map(str.isascii, texts)):
        return words
    return [words[k] for k in reading_order(texts, boxes.mirrored)]
