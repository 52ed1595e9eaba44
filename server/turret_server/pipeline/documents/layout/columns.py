"""Columns: where each phrase is printed.

Phrases are aligned by their left edges, right edges or centres, whichever most others share. The
edges and centres that agree are the page's tab stops. Going through the stops from left to right,
each gets the smallest column that keeps them in order, gives every phrase room between its edges
and keeps cells of a line two spaces apart. This is the longest path from the left margin: what is
aligned on the page is aligned in print, and empty width costs nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from turret_server.pipeline.documents.layout.phrases import Phrase

CELL_GAP = 2
TOLERANCE = float(os.environ.get("TOL", 0.4))
LEFT, CENTRE, RIGHT = 0, 1, 2
CPREF = float(os.environ.get("CPREF", 1))
RPREF = float(os.environ.get("RPREF", 1))


def place(lines: list[list[Phrase]], unit: float) -> list[list[int]]:
    """The column at which each phrase of each line starts.

    Args:
        lines: from top to bottom, each from left to right.
        unit: width of a character.
    """
    phrases = [phrase for line in lines for phrase in line]
    if not phrases:
        return []
    tolerance = TOLERANCE * unit
    lefts = _group([p.left for p in phrases], tolerance)
    rights = _group([p.right for p in phrases], tolerance)
    centres = _group([(p.left + p.right) / 2 for p in phrases], tolerance)
    size_l, size_r, size_c = _sizes(lefts), _sizes(rights), _sizes(centres)
    mode = [LEFT] * len(phrases)
    for i in range(len(phrases)):
        l, r, c = size_l[i], size_r[i], size_c[i]
        if r > l + RPREF and r >= c:
            mode[i] = RIGHT
        elif c > l + CPREF:
            mode[i] = CENTRE
    centred = [i for i in range(len(phrases)) if mode[i] == CENTRE]
    stops = (
        [(x, 2, m) for x, m in lefts]
        + [(x, 0, m) for x, m in rights]
        + [(x, 1, [i for i in m if mode[i] == CENTRE]) for x, m in centres]
    )
    stops.sort()
    before = [-1] * len(phrases)
    number = 0
    for line in lines:
        for k in range(len(line)):
            before[number] = number - 1 if k else -1
            number += 1
    start = [-1] * len(phrases)
    middle = [-1] * len(phrases)
    end = [-1] * len(phrases)
    column = 0
    for _, kind, members in stops:
        for p in members:
            if kind == 2:
                if before[p] >= 0 and end[before[p]] >= 0:
                    column = max(column, end[before[p]] + CELL_GAP)
            elif kind == 1:
                if start[p] >= 0:
                    column = max(column, start[p] + phrases[p].width // 2)
            elif middle[p] >= 0:
                column = max(column, middle[p] - phrases[p].width // 2 + phrases[p].width)
            elif start[p] >= 0:
                column = max(column, start[p] + phrases[p].width)
        for p in members:
            (end, middle, start)[kind][p] = column
    result: list[list[int]] = []
    number = 0
    for line in lines:
        row: list[int] = []
        for phrase in line:
            if mode[number] == RIGHT:
                row.append(end[number] - phrase.width)
            elif mode[number] == CENTRE:
                row.append(middle[number] - phrase.width // 2)
            else:
                row.append(start[number])
            number += 1
        result.append(row)
    return result


def _sizes(groups: list[tuple[float, list[int]]]) -> dict[int, int]:
    return {i: len(members) for _, members in groups for i in members}


def _group(edges: list[float], tolerance: float) -> list[tuple[float, list[int]]]:
    """Edges that agree: their mean, and the phrases."""
    groups: list[list[int]] = []
    first = float("-inf")
    for i in sorted(range(len(edges)), key=edges.__getitem__):
        if edges[i] - first > tolerance:
            first = edges[i]
            groups.append([])
        groups[-1].append(i)
    return [(sum(edges[i] for i in members) / len(members), members) for members in groups]
