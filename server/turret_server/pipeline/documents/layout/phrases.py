"""Phrases: the words of a line that stand close together.

Gaps are measured in characters of their line. What a space is wide comes from the page: from the
gaps no corridor continues. A gap parts two phrases if it is much wider than that, or if its
corridor is, seen over all the lines it crosses: the narrow gap between two long numbers counts as
the column gap it is, the wide gap of a justified line does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from turret_server.pipeline.documents.layout.boxes import Boxes
from turret_server.pipeline.documents.layout.corridors import WIDEST, Gaps, measure_corridors

# A corridor parts phrases if it crosses this many other lines and is so wide on average, in
# characters; in no line may it be narrower than a space.
CROSSED = 3
CORRIDOR = 1.2
SPACE = 0.65
# Without a corridor, a gap parts phrases if it is twice as wide as nine out of ten spaces.
TIMES, SHARE = 2.0, 0.9
LEAST, MOST = 1.2, 2.5
# A bullet or "a)" at the start of a phrase belongs to what follows within so many characters.
ITEM = re.compile(r"[•‣⁃∙◦▪▫■□●○◆◇►▶➢➤☐☑☒✓✔]|\(?([0-9]{1,2}|[A-Za-z])[.)]")
ITEM_GAP = 4.0


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


class Line(NamedTuple):
    """A line, or the part of it that belongs to a column of prose.

    Attributes:
        phrases: from left to right, at least one.
        top, bottom: its sides.
    """

    phrases: list[Phrase]
    top: float
    bottom: float


def find_phrases(boxes: Boxes, lines: list[list[int]], unit: float) -> list[Line]:
    """The phrases of each line.

    Args:
        boxes: the words.
        lines: numbers of words, none empty.
        unit: width of a character of the page.
    """
    left, right, width = boxes.left.tolist(), boxes.right.tolist(), boxes.width.tolist()
    top, bottom = boxes.top.tolist(), boxes.bottom.tolist()
    sides = [(min(top[i] for i in line), max(bottom[i] for i in line)) for line in lines]
    gaps = [
        _gaps(line, left, right, width, unit, *side)
        for line, side in zip(lines, sides, strict=True)
    ]
    corridors = measure_corridors(gaps)
    far = _far(gaps, corridors)
    result: list[Line] = []
    for line, gap_line, crossings in zip(lines, gaps, corridors, strict=True):
        first = line[0]
        phrases = [Phrase([first], left[first], right[first], width[first])]
        for i, gap, (count, total) in zip(line[1:], gap_line.widths, crossings, strict=True):
            last = phrases[-1]
            wide = gap >= far
            if not wide and count >= CROSSED and gap >= SPACE:
                wide = (gap + total) / (count + 1) >= CORRIDOR
            if wide and gap < ITEM_GAP and len(last.words) == 1:
                wide = ITEM.fullmatch(boxes.text[last.words[0]]) is None
            if wide:
                phrases.append(Phrase([i], left[i], right[i], width[i]))
            else:
                last.words.append(i)
                last.right = max(last.right, right[i])
                last.width += 1 + width[i]
        result.append(Line(phrases, gap_line.top, gap_line.bottom))
    return result


def _gaps(
    line: list[int],
    left: list[float],
    right: list[float],
    width: list[int],
    unit: float,
    top: float,
    bottom: float,
) -> Gaps:
    """The gaps of a line, measured in its own characters, or the page's if those are wider."""
    spans: list[tuple[float, float]] = []
    reach = right[line[0]]
    taken = columns = 0.0
    for i in line:
        taken += right[i] - left[i]
        columns += width[i]
    unit = max(unit, taken / max(columns, 1))
    for i in line[1:]:
        spans.append((reach, left[i]))
        reach = max(reach, right[i])
    widths = [min((end - start) / unit, WIDEST) for start, end in spans]
    return Gaps(spans, widths, left[line[0]], reach, unit, top, bottom)


def _far(gaps: list[Gaps], corridors: list[list[tuple[int, float]]]) -> float:
    """How wide a gap must be to part phrases by itself."""
    spaces = [
        width
        for line, crossings in zip(gaps, corridors, strict=True)
        for width, (count, _) in zip(line.widths, crossings, strict=True)
        if count <= 1 and 0.1 < width < 1.6
    ]
    usual = float(np.quantile(spaces, SHARE)) if spaces else 1.0
    return min(max(TIMES * usual, LEAST), MOST)
