"""Corners in the order of reading, for text that does not run from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

from turret_server.pipeline.documents.page import Quad, upright

Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


def turned(left: float, top: float, right: float, bottom: float, clockwise: float) -> Quad:
    """The quad of an axis-aligned box around text turned by `clockwise` degrees.

    Turns are rounded to quarters: how wide a box is says nothing of smaller ones.
    """
    corners = upright(left, top, right, bottom)
    # Text turned by a quarter clockwise begins at the top right and runs down.
    first = 2 * (round(clockwise / 90.0) % 4)
    a, b, c, d, e, f, g, h = corners[first:] + corners[:first]
    return a, b, c, d, e, f, g, h


def turn_of_line(boxes: Sequence[Box]) -> float:
    """Clockwise degrees by which a line is turned, by the order of its words: 0, 90 or 270.

    Tesseract's TSV and ALTO give boxes alone, also of text that runs up or down the page.
    """
    if len(boxes) < 2 or boxes[1][0] >= boxes[0][2] or boxes[1][2] <= boxes[0][0]:
        return 0.0  # nearly always
    pairs = list(pairwise(boxes))
    if any(after[0] >= before[2] or after[2] <= before[0] for before, after in pairs):
        return 0.0
    if all(after[1] >= before[3] for before, after in pairs):
        return 90.0
    return 270.0 if all(after[3] <= before[1] for before, after in pairs) else 0.0


def clockwise(quad: Quad) -> Quad:
    """The same corners, listed clockwise from the first, as quads are.

    Some write them the other way round: top left, bottom left, bottom right, top right.
    """
    a, b, c, d, e, f, g, h = quad
    area = (a * d - c * b) + (c * f - e * d) + (e * h - g * f) + (g * b - a * h)
    return quad if area >= 0 else (a, b, g, h, e, f, c, d)
