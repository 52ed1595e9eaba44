"""Our layout of a page: its stages in order, and the text they come to."""

from __future__ import annotations

from itertools import pairwise

from turret_server.pipeline.documents.layout.bidi import reading_order
from turret_server.pipeline.documents.layout.blocks import find_blocks
from turret_server.pipeline.documents.layout.boxes import Boxes, char_width
from turret_server.pipeline.documents.layout.columns import CELL_GAP, place
from turret_server.pipeline.documents.layout.frame import frames
from turret_server.pipeline.documents.layout.lines import find_lines
from turret_server.pipeline.documents.layout.options import LayoutOptions
from turret_server.pipeline.documents.layout.phrases import Line, find_phrases
from turret_server.pipeline.documents.layout.prose import Run, reading_runs
from turret_server.pipeline.documents.layout.text import PageText, TextBuilder
from turret_server.pipeline.documents.page import Page

# A block is indented by this share of its distance from the margin, and no further than that.
INDENT = 0.3
DEEPEST = 20
# White space that shows as a blank line, in heights of a line; more where lines usually stand
# apart, as in double spacing.
BLANK = 0.8
UNUSUAL = 1.3
DOUBLE = 1.2


def lay_out_turret(page: Page, options: LayoutOptions) -> PageText:
    """The page's words in lines and columns; words of another direction below the rest."""
    builder = TextBuilder(len(page.words))
    for boxes in frames(page, options.mirror):
        boxes, rows = find_lines(boxes)
        unit = char_width(boxes)
        lines = find_phrases(boxes, rows, unit)
        blank = _blank(lines)
        for run in reading_runs(lines, unit):
            above = float("-inf")
            for line, columns in _set_columns(run, unit):
                if builder.length:
                    blanks = min(max(line.top - above, 0.0) / blank, options.max_blank_lines)
                    builder.newline(1 + int(blanks))
                above = line.bottom
                limit = options.max_columns
                _print(builder, boxes, line, [min(column, limit) for column in columns])
    return builder.finish()


def _blank(lines: list[Line]) -> float:
    """How much white space shows as a blank line."""
    gaps = sorted(below.top - above.bottom for above, below in pairwise(lines))
    usual = min(gaps[len(gaps) // 2], DOUBLE) if gaps else 0.0
    return max(BLANK, UNUSUAL * usual)


def _set_columns(run: Run, unit: float) -> list[tuple[Line, list[int]]]:
    """The lines of a run, with the column at which each phrase is printed."""
    printed: list[tuple[Line, list[int]]] = []
    for block in find_blocks(run.lines, unit):
        left = min(line.phrases[0].left for line in block)
        indent = min(int((left - run.margin) / unit * INDENT), DEEPEST)
        for line, columns in zip(block, place(block, unit), strict=True):
            printed.append((line, [indent + column for column in columns]))
    return printed


def _print(builder: TextBuilder, boxes: Boxes, line: Line, columns: list[int]) -> None:
    """Prints phrases at their columns, or later: cells are two spaces apart at least."""
    length = 0
    for k, (phrase, column) in enumerate(zip(line.phrases, columns, strict=True)):
        space = max(column - length, CELL_GAP if k else 0)
        builder.space(space)
        length += space + phrase.width
        for n, i in enumerate(_as_read(boxes, phrase.words)):
            builder.space(1 if n else 0)
            builder.word(boxes.index[i], boxes.text[i])


def _as_read(boxes: Boxes, words: list[int]) -> list[int]:
    """A phrase's words, given from left to right in their frame, in the order of reading."""
    texts = [boxes.text[i] for i in words]
    if boxes.mirrored:
        words, texts = words[::-1], texts[::-1]
    elif all(map(str.isascii, texts)):
        return words
    return [words[k] for k in reading_order(texts, boxes.mirrored)]
