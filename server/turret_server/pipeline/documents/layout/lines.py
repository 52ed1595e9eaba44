"""Lines: words that follow each other along a line, on pages that may be tilted or curved.

Going from left to right, each word continues the line whose level it best agrees with, and a line's
level follows its words, so that a line may climb or sag. What the lines of a page climb in common
is its tilt; it is turned back, and lines are followed once more.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

import numpy as np

from turret_server.pipeline.documents.layout.boxes import Boxes

# Middles, or baselines, agree within this share of the lower of two heights.
MIDDLES = 0.5
BASELINES = 0.2
# How much of its level a line takes from each new word.
FOLLOW = 0.7
# What a gap as wide as a line is high counts for, in the same shares.
DISTANCE = 0.05
# Lines looked at on either side of a word: enough for any page, and a bound for hostile ones.
NEIGHBOURS = 8
# A tilt is worth turning back if it moves words by this share of a line across the page.
NOTABLE = 0.2


def find_lines(boxes: Boxes) -> tuple[Boxes, list[list[int]]]:
    """The page rid of its tilt, and its lines.

    Returns:
        The boxes, and lines of word numbers: from top to bottom, each from left to right.
    """
    lines = _follow(boxes)
    tilt = _tilt(boxes, lines)
    if abs(tilt) * float(boxes.right.max(initial=0)) > NOTABLE:
        boxes = _turn_back(boxes, tilt)
        lines = _follow(boxes)
    middle = (boxes.top + boxes.bottom) / 2
    keys = [float(np.median(middle[line])) for line in lines]
    return boxes, [lines[k] for k in sorted(range(len(lines)), key=keys.__getitem__)]


def _follow(boxes: Boxes) -> list[list[int]]:
    """Lines of word numbers, in the order they begin from the left."""
    left, right = boxes.left.tolist(), boxes.right.tolist()
    middle = ((boxes.top + boxes.bottom) / 2).tolist()
    height = np.maximum(boxes.bottom - boxes.top, 1e-6).tolist()
    lines: list[list[int]] = []
    reach: list[float] = []  # the right side of each line
    tall: list[float] = []  # its height
    # Levels in order, and the lines they belong to.
    levels: list[float] = []
    at_level: list[int] = []
    for i in np.argsort(boxes.left, kind="stable").tolist():
        y, h = middle[i], height[i]
        far = 0.75 * max(h, 1.0)
        start = bisect_left(levels, y)
        best, best_off = -1, float("inf")
        for k in range(max(start - NEIGHBOURS, 0), min(start + NEIGHBOURS, len(levels))):
            off = abs(levels[k] - y)
            if off > far:
                continue
            line = at_level[k]
            big, small = max(h, tall[line]), min(h, tall[line])
            # Words that cover the line's end are not what comes after it.
            if left[i] < reach[line] - 0.5 * min(right[i] - left[i], small) - 1e-9:
                continue
            base = abs(levels[k] + tall[line] / 2 - y - h / 2)
            inside = small < 0.5 * big and off + small / 2 <= 0.5 * big + 0.5 * small
            cost = off / small + DISTANCE * min(max(left[i] - reach[line], 0), 10)
            if cost < best_off and (off < MIDDLES * small or base < BASELINES * small or inside):
                best, best_off = k, cost
        if best < 0:
            levels.insert(start, y)
            at_level.insert(start, len(lines))
            lines.append([i])
            reach.append(right[i])
            tall.append(h)
            continue
        line = at_level[best]
        lines[line].append(i)
        reach[line] = max(reach[line], right[i])
        if h > 0.5 * tall[line]:
            level = levels[best] + FOLLOW * (y - levels[best])
            tall[line] += FOLLOW * (h - tall[line])
            del levels[best], at_level[best]
            place = bisect_left(levels, level)
            levels.insert(place, level)
            at_level.insert(place, line)
    return lines


def _tilt(boxes: Boxes, lines: list[list[int]]) -> float:
    """The median slope of the lines, long ones counting most."""
    x, y = (boxes.left + boxes.right) / 2, (boxes.top + boxes.bottom) / 2
    slopes: list[tuple[float, float]] = []
    for line in lines:
        if len(line) > 2:
            dx, dy = x[line] - x[line].mean(), y[line] - y[line].mean()
            spread = float(dx @ dx)
            if spread > 0:
                slopes.append((float(dx @ dy) / spread, spread))
    slopes.sort()
    rest = sum(weight for _, weight in slopes) / 2
    for slope, weight in slopes:
        rest -= weight
        if rest <= 0:
            return slope
    return 0.0


def _turn_back(boxes: Boxes, tilt: float) -> Boxes:
    """The middle of each box turned, its sides left as they are."""
    x, y = (boxes.left + boxes.right) / 2, (boxes.top + boxes.bottom) / 2
    norm = float(np.hypot(1, tilt))
    dx, dy = (x + tilt * y) / norm - x, (y - tilt * x) / norm - y
    left, top = boxes.left + dx, boxes.top + dy
    return replace(
        boxes,
        left=left - left.min(),
        right=boxes.right + dx - left.min(),
        top=top - top.min(),
        bottom=boxes.bottom + dy - top.min(),
    )
