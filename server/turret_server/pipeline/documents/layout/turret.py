"""Our layout of a page: its stages in order."""

from __future__ import annotations
import os
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

LEAD = int(os.environ.get("LEAD", 20))
ALPHA = float(os.environ.get("ALPHA", 0.3))

def lay_out_turret(page: Page, options: LayoutOptions) -> PageText:
    """The page's words in rows and columns."""
    builder = TextBuilder(len(page.words))
    for number, boxes in enumerate(frames(page)):
        if number:
            builder.newline(1 + min(1, options.max_blank_lines))
        boxes, rows = find_lines(boxes)
        unit = char_width(boxes)
        lines = find_phrases(boxes, rows, unit)
        gaps, bottom = [], float("inf")
        for row in rows:
            gaps.append(float(boxes.top[row].min()) - bottom)
            bottom = float(boxes.bottom[row].max())
        margin = min((p.left for line in lines for p in line), default=0.0)
        columns: list[list[int]] = []
        for block in find_blocks(lines, gaps, unit):
            left = min(p.left for line in lines[block] for p in line)
            offset = min(int((left - margin) / unit * ALPHA), LEAD)
            columns += [[c + offset for c in row] for row in place(lines[block], unit)]
        emit(builder, boxes, lines, columns, gaps, options)
    return builder.finish()


def emit(
    builder: TextBuilder,
    boxes: Boxes,
    lines: list[list[Phrase]],
    columns: list[list[int]],
    gaps: list[float],
    options: LayoutOptions,
) -> None:
    """Prints phrases at their columns, cells at least two spaces apart."""
    for number, (line, starts) in enumerate(zip(lines, columns, strict=True)):
        if number:
            builder.newline(1 + min(max(int(gaps[number] + 0.2), 0), options.max_blank_lines))
        length = 0
        for k, (phrase, start) in enumerate(zip(line, starts, strict=True)):
            space = max(start - length, CELL_GAP if k else 0)
            builder.space(space)
            length += space + phrase.width
            for n, i in enumerate(in_reading_order(boxes, phrase.words)):
                builder.space(1 if n else 0)
                builder.word(int(boxes.index[i]), boxes.text[i])


def in_reading_order(boxes: Boxes, words: list[int]) -> list[int]:
    """A phrase's words as they are read; they come in the order of the frame."""
    texts = [boxes.text[i] for i in words]
    if all(map(str.isascii, texts)) and not boxes.mirrored:
        return words
    if boxes.mirrored:
        words, texts = words[::-1], texts[::-1]
    return [words[k] for k in reading_order(texts, boxes.mirrored)]
