"""Blocks: runs of lines whose columns belong together.

Each block gets columns of its own, so that a wide table does not pull apart the form above it.
Rows, lines of several phrases, stay together while they follow closely, and across a vertical gap
if most of their phrases are aligned with phrases beyond it.
"""

from __future__ import annotations

from itertools import pairwise

from turret_server.pipeline.documents.layout.columns import TOLERANCE
from turret_server.pipeline.documents.layout.phrases import Phrase

# Rows with more lines between them do not belong together.
APART = 6
# White space between lines, in heights of a line, that may part blocks.
GAP = 0.5
# So many rows, and phrases, on either side of a gap are compared; this share must be aligned.
COMPARED = 3
ALIGNED = 0.5
MANY = 60


def find_blocks(lines: list[list[Phrase]], gaps: list[float], unit: float) -> list[slice]:
    """Splits lines into blocks.

    Args:
        lines: from top to bottom.
        gaps: white space above each line, in heights of a line.
        unit: width of a character.
    """
    tolerance = TOLERANCE * unit
    joined = [False] * len(lines)  # to the line before
    rows = [number for number, line in enumerate(lines) if len(line) > 1]
    for k, (above, below) in enumerate(pairwise(rows), start=1):
        if below - above > APART:
            continue
        near = [[lines[i] for i in rows[max(k - COMPARED, 0) : k]]]
        near.append([lines[i] for i in rows[k : k + COMPARED]])
        if max(gaps[above + 1 : below + 1]) < GAP or _aligned(*near, tolerance):
            joined[above + 1 : below + 1] = [True] * (below - above)
    for row in rows:
        # A single phrase next to a row, its head or note, goes with it.
        for number in (row, row + 1):
            if 0 < number < len(lines) and gaps[number] < GAP:
                joined[number] = True
    for number, (above, below) in enumerate(pairwise(lines), start=1):
        if len(above) == len(below) == 1 and abs(above[0].left - below[0].left) < tolerance:
            joined[number] = True
    starts = [number for number, tied in enumerate(joined) if not tied]
    return [slice(first, last) for first, last in pairwise([*starts, len(lines)])]


def _aligned(above: list[list[Phrase]], below: list[list[Phrase]], tolerance: float) -> bool:
    """Whether most phrases of some rows, but for the first of each, are aligned with the others'."""
    upper = [phrase for line in above for phrase in line[1:]][:MANY]
    lower = [phrase for line in below for phrase in line[1:]][:MANY]
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
