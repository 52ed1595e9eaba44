"""The shape of the sheet: what upright boxes hide of its tilt and its bend, read from its lines.

Lines of a sheet fed askew all have one slope. On a bent one, the photograph of an open book, their
slope changes from left to right; a parabola is near enough.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from turret_server.pipeline.documents.layout.boxes import Boxes

# A shape is worth turning back if it moves words by this share of a line.
NOTABLE = 0.2
# Words nearer to each other than this, in heights of a line, tell no slope.
NEAR = 0.5
# The bend is read from this many strips of the page; from no less than so many pairs of words.
STRIPS = 4
PAIRS = 20


def turned_back(boxes: Boxes, lines: list[list[int]]) -> Boxes | None:
    """The boxes without the tilt of the lines; None if they have none."""
    tilt = _tilt(boxes, lines)
    if abs(tilt) * float(boxes.right.max()) <= NOTABLE:
        return None
    x, y = (boxes.left + boxes.right) / 2, (boxes.top + boxes.bottom) / 2
    norm = float(np.hypot(1, tilt))
    # The middle of each box is turned, its sides stay as they are.
    dx, dy = (x + tilt * y) / norm - x, (y - tilt * x) / norm - y
    left, top = boxes.left + dx, boxes.top + dy
    return replace(
        boxes,
        left=left - left.min(),
        right=boxes.right + dx - left.min(),
        top=top - top.min(),
        bottom=boxes.bottom + dy - top.min(),
    )


def unbent(boxes: Boxes, lines: list[list[int]]) -> Boxes | None:
    """The boxes without the bend of the lines; None if they have none."""
    middle, slope, bend = _parabola(boxes, lines)
    if abs(bend) * (float(boxes.right.max()) / 2) ** 2 <= NOTABLE:
        return None
    x = (boxes.left + boxes.right) / 2 - middle
    shift = slope * x + bend * x**2
    top, bottom = boxes.top - shift, boxes.bottom - shift
    return replace(boxes, top=top - top.min(), bottom=bottom - top.min())


def _tilt(boxes: Boxes, lines: list[list[int]]) -> float:
    """The median slope of the lines, long ones counting most."""
    xs = ((boxes.left + boxes.right) / 2).tolist()
    ys = ((boxes.top + boxes.bottom) / 2).tolist()
    slopes: list[tuple[float, float]] = []
    for line in lines:
        if len(line) > 2:
            x, y = [xs[i] for i in line], [ys[i] for i in line]
            x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
            spread = sum([(a - x_mean) ** 2 for a in x])
            if spread > NEAR:
                rise = sum([(a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)])
                slopes.append((rise / spread, spread))
    slopes.sort()
    rest = sum([weight for _, weight in slopes]) / 2
    for slope, weight in slopes:
        rest -= weight
        if rest <= 0:
            return slope
    return 0.0


def _parabola(boxes: Boxes, lines: list[list[int]]) -> tuple[float, float, float]:
    """What lines have in common: a place along x, the slope there, and the bend about it.

    The slope of a line at x is that slope and twice the bend times the distance from the place.
    """
    xs = ((boxes.left + boxes.right) / 2).tolist()
    ys = ((boxes.top + boxes.bottom) / 2).tolist()
    slopes = sorted(
        ((xs[a] + xs[b]) / 2, (ys[b] - ys[a]) / (xs[b] - xs[a]))
        for line in lines
        for a, b in pairwise(line)
        if xs[b] - xs[a] > NEAR
    )
    if len(slopes) < PAIRS:
        return 0.0, 0.0, 0.0
    cuts = [len(slopes) * k // STRIPS for k in range(STRIPS + 1)]
    strips = [slopes[first:last] for first, last in pairwise(cuts)]
    x = [strip[len(strip) // 2][0] for strip in strips]
    y = [sorted([slope for _, slope in strip])[len(strip) // 2] for strip in strips]
    x_mean, y_mean = sum(x) / STRIPS, sum(y) / STRIPS
    spread = sum([(a - x_mean) ** 2 for a in x])
    if spread <= NEAR:
        return 0.0, 0.0, 0.0
    twice = sum([(a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)]) / spread
    return x_mean, y_mean, twice / 2
