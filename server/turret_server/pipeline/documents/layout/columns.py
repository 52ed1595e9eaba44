"""Columns: where each phrase is printed.

The left and right edges of all phrases, those that agree taken as one, are the page's tab stops.
Going through them from left to right, each gets the smallest column that keeps the stops in order,
gives every phrase room between its two stops and keeps cells of a line two spaces apart. This is
the longest path from the left margin, so aligned edges stay aligned and empty width costs nothing.
"""

from __future__ import annotations

from turret_server.pipeline.documents.layout.phrases import Phrase

CELL_GAP = 2
TOLERANCE = 0.2


def place(lines: list[list[Phrase]]) -> list[list[int]]:
    """The column at which each phrase of each line starts."""
    phrases = [phrase for line in lines for phrase in line]
    if not phrases:
        return []
    left_stop = _stops([phrase.left for phrase in phrases])
    right_stop = _stops([phrase.right for phrase in phrases])
    count = max(left_stop) + 1
    edges = _positions([p.left for p in phrases], left_stop) + _positions(
        [p.right for p in phrases], right_stop
    )
    # A right edge goes before a left edge at the same place.
    order = sorted(range(len(edges)), key=lambda stop: (edges[stop], stop < count))
    ending: list[list[int]] = [[] for _ in edges]
    starting: list[list[int]] = [[] for _ in edges]
    before = [-1] * len(phrases)
    number = 0
    for line in lines:
        for k in range(len(line)):
            if k:
                before[number] = number - 1
            starting[left_stop[number]].append(number)
            ending[count + right_stop[number]].append(number)
            number += 1
    column = [0] * len(edges)
    reach = 0
    for stop in order:
        for p in starting[stop]:
            if before[p] >= 0:
                reach = max(reach, column[count + right_stop[before[p]]] + CELL_GAP)
        for p in ending[stop]:
            reach = max(reach, column[left_stop[p]] + phrases[p].width)
        column[stop] = reach
    starts: list[list[int]] = []
    number = 0
    for line in lines:
        row: list[int] = []
        for phrase in line:
            left, right = left_stop[number], count + right_stop[number]
            by_right = len(ending[right]) > len(starting[left])
            row.append(column[right] - phrase.width if by_right else column[left])
            number += 1
        starts.append(row)
    return starts


def _stops(edges: list[float]) -> list[int]:
    """Numbers edges that agree alike."""
    stops = [0] * len(edges)
    number, first = -1, float("-inf")
    for i in sorted(range(len(edges)), key=edges.__getitem__):
        if edges[i] - first > TOLERANCE:
            number, first = number + 1, edges[i]
        stops[i] = number
    return stops


def _positions(edges: list[float], stops: list[int]) -> list[float]:
    """Each stop's mean edge."""
    total = [0.0] * (max(stops) + 1)
    count = [0] * (max(stops) + 1)
    for edge, stop in zip(edges, stops, strict=True):
        total[stop] += edge
        count[stop] += 1
    return [t / n for t, n in zip(total, count, strict=True)]
