"""Tesseract's TSV: a row per page, block, paragraph, line and word; pixels, confidence 0 to 100."""

from __future__ import annotations

from turret_server.pipeline.documents.readers.builder import Builder, PageBuilder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse
from turret_server.pipeline.documents.readers.quads import Box

_COLUMNS = (
    "level", "page_num", "block_num", "par_num", "line_num", "word_num",
    "left", "top", "width", "height", "conf", "text",
)  # fmt: skip
_PAGE, _WORD = "1", "5"


def _fits(content: Glimpse) -> bool:
    return content.head.partition("\n")[0].startswith("level\tpage_num\t")


def _collect(data: bytes, document: Builder) -> None:
    try:
        rows = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise document.wrong(f"it is not UTF-8: {error}") from error
    header = rows[0].rstrip("\r").split("\t")
    if missing := [name for name in _COLUMNS if name not in header]:
        raise document.wrong(
            f"its first line names no column {missing[0]!r}",
            "The first line must be Tesseract's header: level, page_num, ... conf, text.",
        )
    # Others may have moved or added columns.
    order = None if header == list(_COLUMNS) else [header.index(name) for name in _COLUMNS]
    page: PageBuilder | None = None
    page_num, place = "", ("", "", "")
    line_num = block_num = -1
    texts: list[str] = []
    boxes: list[Box] = []
    confidences: list[float | None] = []

    def end_line() -> None:
        if page is not None and texts:
            page.line(texts, boxes, confidences, line_num, block_num)
        for column in (texts, boxes, confidences):
            column.clear()

    for number, row in enumerate(rows[1:], start=2):
        cells = row.split("\t", len(header) - 1)
        if len(cells) < len(header):
            if row.strip():
                raise document.wrong(f"line {number} has {len(cells)} of {len(header)} columns")
            continue
        if order is not None:
            cells = [cells[i] for i in order]
        level, num, block, paragraph, line, _, left, top, width, height, sure, text = cells
        try:
            if level != _WORD:
                if level == _PAGE:
                    end_line()
                    page = document.page(float(width), float(height))
                    page_num, place = num, ("", "", "")
                elif level == "level":  # another file, appended
                    page_num = ""
                continue
            x, y, confidence = float(left), float(top), float(sure)
            box = (x, y, x + float(width), y + float(height))
        except ValueError as error:
            raise document.wrong(f"line {number}: {error}") from error
        if page is None or num != page_num:  # its row is missing
            end_line()
            page, page_num, place = document.page(), num, ("", "", "")
        where = (block, paragraph, line)
        if where != place:
            end_line()
            line_num += 1
            block_num += where[:2] != place[:2]
            place = where
        texts.append(text)
        boxes.append(box)
        confidences.append(None if confidence < 0 else confidence / 100)
    end_line()


FORMAT = Format("tesseract-tsv", "Tesseract TSV", _fits, _collect)
