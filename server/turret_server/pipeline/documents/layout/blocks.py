"""Blocks: runs of lines whose columns belong together.

Each block gets columns of its own, so that a wide table does not pull apart the form above it.
Rows, lines of several phrases, stay together while they follow closely, and across a vertical gap
if most of their phrases are aligned with phrases beyond it.
"""

from __future__ import annotations

import os

from turret_server.pipeline.documents.layout.phrases import Phrase

# Rows this many lines apart may belong together.
APART = int(os.environ.get("TIE", 6))
# Lines of one phrase next to a row, heads and notes, go with it.
ALIGNED = float(os.environ.get("AL", 0.5))
GAP = float(os.environ.get("GAP", 0.5))
WIN = int(os.environ.get("WIN", 3))
EXT = int(os.environ.get("EXT", 1))
TOL = float(os.environ.get("TOLB", 0.4))


def find_blocks(lines: list[list[Phrase]], gaps: list[float], unit: float) -> list[slice]:
    """Splits lines into blocks.

    Args:
        lines: from top to bottom.
        gaps: white space above each line, in heights of a line.
        unit: width of a character.
    """
    rows = [i for i, line in enumerate(lines) if len(line) > 1]
    joined = [False] * len(lines)  # to the line before
    for k in range(1, len(rows)):
        above, below = rows[k - 1], rows[k]
        if below - above > APART:
            continue
        if max(gaps[above + 1 : below + 1]) >= GAP and not _aligned(
            lines, rows[max(k - WIN, 0) : k], rows[k : k + WIN], TOL * unit
        ):
            continue
        joined[above + 1 : below + 1] = [True] * (below - above)
    for i in rows:
        for j in range(max(1, i - EXT + 1), i + 1):
            if gaps[j] < GAP:
                joined[j] = True
        for j in range(i + 1, min(len(lines), i + EXT + 1)):
            if gaps[j] < GAP:
                joined[j] = True
    for i in range(1, len(lines)):
        if (
            len(lines[i]) == len(lines[i - 1]) == 1
            and abs(lines[i][0].left - lines[i - 1][0].left) < TOL * unit
        ):
            joined[i] = True
    starts = [i for i, tied in enumerate(joined) if not tied] + [len(lines)]
    return [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]


def _aligned(
    lines: list[list[Phrase]], above: list[int], below: list[int], tolerance: float
) -> bool:
    """Whether most phrases on one side are aligned with phrases of the other."""
    sides = [[p for i in rows for p in lines[i][1:]] for rows in (above, below)]
    for mine, others in (sides, sides[::-1]):
        hits = sum(
            any(
                abs(p.left - q.left) < tolerance
                or abs(p.right - q.right) < tolerance
                or abs(p.left + p.right - q.left - q.right) < 2 * tolerance
                for q in others
            )
            for p in mine
        )
        if hits >= ALIGNED * len(mine):
            return True
    return False
