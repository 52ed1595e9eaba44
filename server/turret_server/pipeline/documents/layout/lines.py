"""Lines: words that follow each other along a line, on pages that may be tilted or curved.

Going from left to right, each word continues the line whose level it best agrees with, and a line's
level follows its words, so that a line may climb or sag. What the lines of a page climb in common
is its tilt; it is turned back, and lines are followed once more.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace

import numpy as np

from turret_server.pipeline.documents.layout.boxes import Boxes

# Middles, or baselines, agree within this share of the lower of two heights. What is less than half
# as high as its line, a dot or a dash, may stand anywhere within it.
MIDDLES = 0.5
BASELINES = 0.2
# How much of its level a line takes from each new word.
FOLLOW = 0.7
# What a gap as wide as a line is high counts for, in the same shares.
DISTANCE = 0.05
# Levels farther away, in heights of the word or of a usual one, are not looked at.
FARTHEST = 0.75
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
    middle = ((boxes.top + boxes.bottom) / 2).tolist()
    lines.sort(key=lambda line: sorted([middle[i] for i in line])[len(line) // 2])
    return boxes, lines


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
        y, h, x = middle[i], height[i], left[i]
        far = FARTHEST * max(h, 1.0)
        start = bisect_left(levels, y)
        lowest = max(bisect_left(levels, y - far, 0, start), start - NEIGHBOURS)
        highest = min(bisect_right(levels, y + far, start), start + NEIGHBOURS)
        best, least = -1, float("inf")
        for k in range(lowest, highest):
            line = at_level[k]
            other = tall[line]
            small, big = (h, other) if h < other else (other, h)
            gap = x - reach[line]
            if gap < 0 and -2 * gap > min(right[i] - x, small):
                continue  # It covers the line's end, and so does not come after it.
            off = abs(levels[k] - y)
            cost = off / small + DISTANCE * min(max(gap, 0.0), 10.0)
            if cost < least and (
                off < MIDDLES * small
                or abs(levels[k] - y + (other - h) / 2) < BASELINES * small
                or (small < 0.5 * big and off <= 0.5 * big)
            ):
                best, least = k, cost
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
        # Dots and dashes do not tell the level of a line.
        if h > 0.5 * tall[line]:
            tall[line] += FOLLOW * (h - tall[line])
            level = levels.pop(best)
            level += FOLLOW * (y - level)
            place = bisect_left(levels, level)
            levels.insert(place, level)
            at_level.insert(place, at_level.pop(best))
    return lines


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
            if spread > 0:
                rise = sum([(a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)])
                slopes.append((rise / spread, spread))
    slopes.sort()
    rest = sum([weight for _, weight in slopes]) / 2
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
