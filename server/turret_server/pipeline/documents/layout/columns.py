"""Columns: where each phrase of a block is printed.

Phrases are aligned by their left edges, right edges or centres, whichever most others share. The
edges and centres that agree are the block's tab stops. Going through the stops from left to right,
each gets the smallest column that keeps them in order, gives every phrase room between its edges
and keeps cells of a line two spaces apart. This is the longest path from the left margin: what is
aligned on the page is aligned in print, what does not overlap does not overlap, and empty width
costs nothing.
"""

from __future__ import annotations

from turret_server.pipeline.documents.layout.phrases import Line

# Spaces between cells of a line, at least.
CELL_GAP = 2
# Edges agree within this share of a character.
TOLERANCE = 0.4
# Kinds of stops, in the order they are passed where they lie at the same place.
RIGHT, CENTRE, LEFT = range(3)


def place(lines: list[Line], unit: float) -> list[list[int]]:
    """The column at which each phrase of each line starts; the leftmost is 0.

    Args:
        lines: of one block, from top to bottom.
        unit: width of a character.
    """
    phrases = [phrase for line in lines for phrase in line.phrases]
    tolerance = TOLERANCE * unit
    stops = {
        LEFT: _agree([p.left for p in phrases], tolerance),
        CENTRE: _agree([(p.left + p.right) / 2 for p in phrases], tolerance),
        RIGHT: _agree([p.right for p in phrases], tolerance),
    }
    shared = {kind: _sizes(groups, len(phrases)) for kind, groups in stops.items()}
    aligned = list(map(_alignment, shared[LEFT], shared[CENTRE], shared[RIGHT]))
    before: list[int] = []  # the phrase to the left on the line, or -1
    for line in lines:
        before += [-1, *range(len(before), len(before) + len(line.phrases) - 1)]
    # Of each phrase, the columns of its stops; -1 until they are passed.
    column = {kind: [-1] * len(phrases) for kind in stops}
    start, middle, end = column[LEFT], column[CENTRE], column[RIGHT]
    reach = 0
    for _, kind, members in sorted(
        (x, kind, members) for kind, groups in stops.items() for x, members in groups
    ):
        for p in members:
            width = phrases[p].width
            if kind == LEFT:
                if before[p] >= 0 and end[before[p]] >= 0:
                    reach = max(reach, end[before[p]] + CELL_GAP)
            elif aligned[p] == CENTRE:
                if kind == CENTRE:
                    reach = max(reach, start[p] + width // 2)
                else:
                    reach = max(reach, middle[p] + width - width // 2)
            elif kind == RIGHT and start[p] >= 0:
                reach = max(reach, start[p] + width)
        for p in members:
            column[kind][p] = reach
    starts = [
        (end[p] - phrase.width, middle[p] - phrase.width // 2, start[p])[aligned[p]]
        for p, phrase in enumerate(phrases)
    ]
    result: list[list[int]] = []
    first = 0
    for line in lines:
        result.append(starts[first : first + len(line.phrases)])
        first += len(line.phrases)
    return result


def _agree(edges: list[float], tolerance: float) -> list[tuple[float, list[int]]]:
    """Groups of edges that agree: their mean, and the phrases, from left to right."""
    groups: list[list[int]] = []
    first = float("-inf")
    for i in sorted(range(len(edges)), key=edges.__getitem__):
        if edges[i] - first > tolerance:
            first = edges[i]
            groups.append([])
        groups[-1].append(i)
    return [(sum(edges[i] for i in group) / len(group), group) for group in groups]


def _sizes(groups: list[tuple[float, list[int]]], count: int) -> list[int]:
    """For each phrase, how many share its stop."""
    sizes = [0] * count
    for _, members in groups:
        for p in members:
            sizes[p] = len(members)
    return sizes


def _alignment(left: int, centre: int, right: int) -> int:
    """What a phrase is aligned by, from how many share each of its stops."""
    if right > left + 1 and right >= centre:
        return RIGHT
    return CENTRE if centre > left + 1 else LEFT
