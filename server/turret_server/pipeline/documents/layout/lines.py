"""Lines: words whose vertical middles agree, whatever order they come in."""

from __future__ import annotations

import numpy as np

from turret_server.pipeline.documents.layout.boxes import Boxes


def find_lines(boxes: Boxes) -> list[list[int]]:
    """Rows of word numbers, from top to bottom, each from left to right."""
    middle = (boxes.top + boxes.bottom) / 2
    height = np.maximum(boxes.bottom - boxes.top, 1e-6)
    rows: list[list[int]] = []
    current: list[tuple[float, float]] = []
    for i in np.argsort(middle, kind="stable").tolist():
        m, h = float(middle[i]), float(height[i])
        for back in range(1, min(len(rows), 8) + 1):
            row_middle, row_height = current[-back]
            if m - row_middle < 0.45 * min(h, row_height):
                rows[-back].append(i)
                break
        else:
            rows.append([i])
            current.append((m, h))
    left = boxes.left.tolist()
    return [sorted(row, key=lambda i: left[i]) for row in rows]
