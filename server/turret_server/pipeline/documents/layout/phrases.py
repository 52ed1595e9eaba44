"""Phrases: the words of a line that stand close together."""

from __future__ import annotations

from dataclasses import dataclass

from turret_server.pipeline.documents.layout.boxes import Boxes


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


def find_phrases(boxes: Boxes, line: list[int]) -> list[Phrase]:
    """Splits a line where the gap is wide."""
    phrases: list[Phrase] = []
    for i in line:
        left, right, width = float(boxes.left[i]), float(boxes.right[i]), int(boxes.width[i])
        if phrases and left - phrases[-1].right < 0.6:
            last = phrases[-1]
            last.words.append(i)
            last.right = max(last.right, right)
            last.width += 1 + width
        else:
            phrases.append(Phrase([i], left, right, width))
    return phrases
