"""Phrases: the words of a line that stand close together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from turret_server.pipeline.documents.layout.boxes import Boxes
from turret_server.pipeline.documents.layout.corridors import Gaps, measure_corridors

# In characters. Below NARROW no gap parts cells, from WIDE on a corridor's mean does.
NARROW = 0.65
WIDE = 1.2
BULLETS = frozenset("•‣⁃∙◦▪▫■□●○◆◇►▶➢➤☐☑☒✓✔")


@dataclass(slots=True)
class Phrase:
    """Words that belong together, printed with one space between any two.

    Attributes:
        words: their numbers in the frame, from left to right.
        left, right: where it begins and ends.
        width: columns it takes in print.
    """

    words: list[int]
    left: float
    right: float
    width: int


def find_phrases(boxes: Boxes, lines: list[list[int]]) -> list[list[Phrase]]:
    """Splits lines where a gap is wide, or part of a wide corridor."""
    left, right, width = boxes.left.tolist(), boxes.right.tolist(), boxes.width.tolist()
    char = _char_width(boxes)
    gaps: list[Gaps] = []
    for line in lines:
        spans: list[tuple[float, float]] = []
        reach = right[line[0]]
        for i in line[1:]:
            spans.append((reach, left[i]))
            reach = max(reach, right[i])
        taken = sum(right[i] - left[i] for i in line) / max(sum(width[i] for i in line), 1)
        gaps.append(Gaps(spans, left[line[0]], reach, max(char, taken)))
    corr = measure_corridors(gaps)
    sp = [
        (high - low) / gap.unit
        for gap, counts in zip(gaps, corr, strict=True)
        for (low, high), (n, _) in zip(gap.spans, counts, strict=True)
        if n <= 1 and 0.1 < (high - low) / gap.unit < 1.6
    ]
    iso = min(max(2 * float(np.quantile(sp, 0.9)) if sp else 2.0, 1.2), 2.5)
    result: list[list[Phrase]] = []
    for line, gap, corridors in zip(lines, gaps, corr, strict=True):
        phrases = [Phrase([line[0]], left[line[0]], right[line[0]], width[line[0]])]
        widths = [(high - low) / gap.unit for low, high in gap.spans]
        for i, wide, (count, total) in zip(line[1:], widths, corridors, strict=True):
            last = phrases[-1]
            mean = (min(wide, 4.0) + total) / (count + 1) if count >= 3 else 0.0
            bullet = len(last.words) == 1 and boxes.text[last.words[0]] in BULLETS and wide < 6
            if (wide >= iso or (wide >= NARROW and mean >= WIDE)) and not bullet:
                phrases.append(Phrase([i], left[i], right[i], width[i]))
            else:
                last.words.append(i)
                last.right = max(last.right, right[i])
                last.width += 1 + width[i]
        result.append(phrases)
    return result


def _char_width(boxes: Boxes) -> float:
    """The median word's width per column of print."""
    wide = (boxes.right - boxes.left) / np.maximum(boxes.width, 1)
    return max(float(np.median(wide)), 1e-6)
