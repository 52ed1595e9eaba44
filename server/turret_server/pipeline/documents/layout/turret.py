"""Our layout of a page: its stages in order."""

from __future__ import annotations

from turret_server.pipeline.documents.layout.boxes import Boxes
from turret_server.pipeline.documents.layout.columns import CELL_GAP, place
from turret_server.pipeline.documents.layout.frame import frames
from turret_server.pipeline.documents.layout.lines import find_lines
from turret_server.pipeline.documents.layout.options import LayoutOptions
from turret_server.pipeline.documents.layout.phrases import Phrase, find_phrases
from turret_server.pipeline.documents.layout.text import PageText, TextBuilder
from turret_server.pipeline.documents.page import Page


def lay_out_turret(page: Page, options: LayoutOptions) -> PageText:
    """The page's words in rows and columns."""
    builder = TextBuilder(len(page.words))
    for number, boxes in enumerate(frames(page)):
        if number:
            builder.newline(1 + min(1, options.max_blank_lines))
        boxes, rows = find_lines(boxes)
        lines = find_phrases(boxes, rows)
        emit(builder, boxes, lines, place(lines), options)
    return builder.finish()


def emit(
    builder: TextBuilder,
    boxes: Boxes,
    lines: list[list[Phrase]],
    columns: list[list[int]],
    options: LayoutOptions,
) -> None:
    """Prints phrases at their columns, cells at least two spaces apart."""
    bottom = float("inf")
    for number, (line, starts) in enumerate(zip(lines, columns, strict=True)):
        words = [i for phrase in line for i in phrase.words]
        if number:
            gap = float(boxes.top[words].min()) - bottom
            builder.newline(1 + min(max(int(gap), 0), options.max_blank_lines))
        bottom = float(boxes.bottom[words].max())
        length = 0
        for k, (phrase, start) in enumerate(zip(line, starts, strict=True)):
            space = max(start - length, CELL_GAP if k else 0)
            builder.space(space)
            length += space + phrase.width
            for n, i in enumerate(phrase.words):
                builder.space(1 if n else 0)
                builder.word(int(boxes.index[i]), boxes.text[i])
