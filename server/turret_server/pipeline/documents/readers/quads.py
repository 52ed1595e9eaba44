"""Corners in the order of reading, for text that does not run from left to right."""

from __future__ import annotations

from turret_server.pipeline.documents.page import Quad, upright


def turned(left: float, top: float, right: float, bottom: float, clockwise: float) -> Quad:
    """The quad of an axis-aligned box around text turned by `clockwise` degrees.

    Turns are rounded to quarters: how wide a box is says nothing of smaller ones.
    """
    corners = upright(left, top, right, bottom)
    # Text turned by a quarter clockwise begins at the top right and runs down.
    first = 2 * (round(clockwise / 90.0) % 4)
    a, b, c, d, e, f, g, h = corners[first:] + corners[:first]
    return a, b, c, d, e, f, g, h


def clockwise(quad: Quad) -> Quad:
    """The same corners, listed clockwise from the first, as quads are.

    Some write them the other way round: top left, bottom left, bottom right, top right.
    """
    a, b, c, d, e, f, g, h = quad
    area = (a * d - c * b) + (c * f - e * d) + (e * h - g * f) + (g * b - a * h)
    return quad if area >= 0 else (a, b, g, h, e, f, c, d)
