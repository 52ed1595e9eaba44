"""Pages drawn for tests: monospaced words, 5 wide a character and 10 high, rows 12 apart."""

from __future__ import annotations

import math
from collections.abc import Iterable

from turret_server.pipeline.documents.layout import LayoutOptions, lay_out
from turret_server.pipeline.documents.layout.boxes import Boxes, display_width
from turret_server.pipeline.documents.layout.frame import frames
from turret_server.pipeline.documents.page import Page, Quad, Word, upright

CHAR, HEIGHT, PITCH, SPACE = 5.0, 10.0, 12.0, 3.0


def cell(x: float, y: float, text: str, align: str = "left") -> list[Word]:
    """The words of `text`, SPACE apart; `x` is the left side, the middle or the right side."""
    parts = text.split()
    widths = [CHAR * display_width(part) for part in parts]
    whole = sum(widths) + SPACE * (len(parts) - 1)
    x -= {"left": 0.0, "centre": whole / 2, "right": whole}[align]
    words: list[Word] = []
    for part, width in zip(parts, widths, strict=True):
        words.append(Word(part, upright(x, y, x + width, y + HEIGHT)))
        x += width + SPACE
    return words


def table(
    rows: Iterable[Iterable[str]], columns: Iterable[tuple[float, str]], y: float = 0.0
) -> list[Word]:
    """Rows of cells; each column has a place and an alignment. Empty cells are left out."""
    columns = list(columns)
    return [
        word
        for number, row in enumerate(rows)
        for (x, align), text in zip(columns, row, strict=True)
        for word in cell(x, y + PITCH * number, text, align)
    ]


def page(words: Iterable[Word]) -> Page:
    return Page(list(words), width=600, height=800)


def boxes(words: Iterable[Word]) -> Boxes:
    return frames(page(words))[0]


def text(words: Iterable[Word], options: LayoutOptions | None = None) -> str:
    return lay_out(page(words), options or LayoutOptions()).text


def turned(words: Iterable[Word], degrees: float) -> list[Word]:
    """The words turned clockwise on the page, about its origin."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def turn(quad: Quad) -> Quad:
        corners = list(zip(quad[0::2], quad[1::2], strict=True))
        turned = [(x * cos - y * sin, x * sin + y * cos) for x, y in corners]
        (a, b), (c, d), (e, f), (g, h) = turned
        return a, b, c, d, e, f, g, h

    return [Word(word.text, turn(word.quad)) for word in words]


def boxed(words: Iterable[Word]) -> list[Word]:
    """The words with upright boxes around their quads, as most OCR gives them."""
    return [Word(word.text, upright(*word.box)) for word in words]


INVOICE = [
    *table(
        [
            ["Invoice 4711", "Date:", "3 May 2024"],
            ["ACME Ltd.", "Customer:", "10042"],
        ],
        [(40, "left"), (400, "left"), (470, "left")],
    ),
    *table(
        [
            ["Item", "Quantity", "Amount"],
            ["Blue widget", "2", "19.90"],
            ["Green widget, large", "12", "1,204.00"],
            ["Shipping", "", "4.50"],
        ],
        [(40, "left"), (250, "right"), (400, "right")],
        y=50,
    ),
    *table([["Total", "1,228.40"]], [(300, "left"), (400, "right")], y=110),
]

INVOICE_TEXT = """\
Invoice 4711  Date:      3 May 2024
ACME Ltd.     Customer:  10042

Item               Quantity         Amount
Blue widget               2          19.90
Green widget, large      12       1,204.00
Shipping                              4.50

                           Total  1,228.40"""
