"""Blocks: runs of lines whose columns belong together.

Each block gets columns of its own, so that a wide table does not pull apart the form above it.
Rows, lines of several phrases, stay together while they follow closely, and across a vertical gap
if most of their phrases are aligned with phrases beyond it, or stand above them one by one.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from turret_server.pipeline.documents.layout.columns import TOLERANCE
from turret_server.pipeline.documents.layout.phrases import Line, Phrase

# Rows with more lines between them do not belong together.
APART = 6
# White space between lines, in heights of a line, that may part blocks.
GAP = 0.5
# So many rows, and phrases, on either side of a gap are compared; this share must be aligned.
COMPARED = 3
ALIGNED = 0.5
MANY = 60
# Two rows of at least so many phrases correspond if this share of them stand above each other.
FEW = 3
MATCHED = 0.75


def find_blocks(lines: list[Line], unit: float) -> list[list[Line]]:
    """Splits lines into blocks.

    Args:
        lines: from top to bottom.
        unit: width of a character.
    """
    tolerance = TOLERANCE * unit
    apart = [False, *(below.top - above.bottom >= GAP for above, below in pairwise(lines))]
    joined = [False] * len(lines)  # to the line before
    rows = [number for number, line in enumerate(lines) if len(line.phrases) > 1]
    for k, (above, below) in enumerate(pairwise(rows), start=1):
        if below - above > APART:
            continue
        if (
            not any(apart[above + 1 : below + 1])
            or _correspond(lines[above].phrases[:MANY], lines[below].phrases[:MANY])
            or _aligned(
                [lines[row] for row in rows[max(k - COMPARED, 0) : k]],
                [lines[row] for row in rows[k : k + COMPARED]],
                tolerance,
            )
        ):
            joined[above + 1 : below + 1] = [True] * (below - above)
    for row in rows:
        # A single phrase next to a row, its head or note, goes with it.
        for number in (row, row + 1):
            if 0 < number < len(lines) and not apart[number]:
                joined[number] = True
    for number, (above, below) in enumerate(pairwise(lines), start=1):
        if len(above.phrases) == len(below.phrases) == 1:
            joined[number] |= abs(above.phrases[0].left - below.phrases[0].left) < tolerance
    starts = [number for number, tied in enumerate(joined) if not tied]
    return [lines[first:last] for first, last in pairwise([*starts, len(lines)])]


def _correspond(above: list[Phrase], below: list[Phrase]) -> bool:
    """Whether the phrases of two rows stand above each other one by one, as head and cells do."""
    over = [
        [q for q, b in enumerate(below) if b.left < a.right and a.left < b.right] for a in above
    ]
    times = Counter(q for met in over for q in met)
    matched = sum(len(met) == 1 and times[met[0]] == 1 for met in over)
    return min(len(above), len(below)) >= FEW and matched >= MATCHED * max(len(above), len(below))


def _aligned(above: list[Line], below: list[Line], tolerance: float) -> bool:
    """Whether most phrases of one side, but for the first of each row, agree with the other's."""
    upper = [phrase for line in above for phrase in line.phrases[1:]][:MANY]
    lower = [phrase for line in below for phrase in line.phrases[1:]][:MANY]
    return any(
        sum(_meets(phrase, others, tolerance) for phrase in mine) >= ALIGNED * len(mine)
        for mine, others in ((upper, lower), (lower, upper))
    )


def _meets(phrase: Phrase, others: list[Phrase], tolerance: float) -> bool:
    """Whether an edge or the centre of `phrase` agrees with that of another."""
    return any(
        abs(phrase.left - other.left) < tolerance
        or abs(phrase.right - other.right) < tolerance
        or abs(phrase.left + phrase.right - other.left - other.right) < 2 * tolerance
        for other in others
    )
