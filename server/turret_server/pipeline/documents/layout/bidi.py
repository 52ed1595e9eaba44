"""Right-to-left scripts: from the order words stand in to the order they are read in.

A page mostly in Arabic or Hebrew is mirrored, so that its first column comes first; a run of the
other direction within a phrase (a Latin name, a number of several words) is turned round. The rule
is that of the Unicode bidirectional algorithm, UAX 9 (L2), for whole words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

LEFT_TO_RIGHT, RIGHT_TO_LEFT, NUMBER, NEUTRAL = "L", "R", "N", ""
STRONG = (LEFT_TO_RIGHT, RIGHT_TO_LEFT)


def direction(text: str) -> str:
    """The direction of a word's first letter, else whether it is a number."""
    if text.isascii() and text[:1].isalpha():
        return LEFT_TO_RIGHT
    found = NEUTRAL
    for char in text:
        kind = unicodedata.bidirectional(char)
        if kind == "L":
            return LEFT_TO_RIGHT
        if kind in ("R", "AL"):
            return RIGHT_TO_LEFT
        if kind in ("EN", "AN"):
            found = NUMBER
    return found


def reads_right_to_left(texts: Sequence[str]) -> bool:
    """Whether most words that have a direction go from right to left."""
    balance = 0
    for text in texts:
        if text.isascii():
            balance += text.isalpha()
        else:
            kind = direction(text)
            balance += (kind == LEFT_TO_RIGHT) - (kind == RIGHT_TO_LEFT)
    return balance < 0


def reading_order(texts: Sequence[str], right_to_left: bool) -> list[int]:
    """Places of a phrase's words, given from left to right, in the order they are read."""
    levels = _levels([direction(text) for text in texts], int(right_to_left))
    order = list(range(len(texts)))
    for threshold in (2, 1):
        start = 0
        while start < len(order):
            end = start
            while end < len(order) and levels[end] >= threshold:
                end += 1
            order[start:end] = order[start:end][::-1]
            start = max(end, start + 1)
    return order


def _levels(kinds: list[str], base: int) -> list[int]:
    """Embedding levels: odd ones run from right to left."""
    following = [NEUTRAL] * len(kinds)
    for i in range(len(kinds) - 2, -1, -1):
        following[i] = kinds[i + 1] if kinds[i + 1] in STRONG else following[i + 1]
    levels: list[int] = []
    before = (LEFT_TO_RIGHT, RIGHT_TO_LEFT)[base]
    for kind, after in zip(kinds, following, strict=True):
        if kind in STRONG:
            before = kind
            levels.append(1 if kind == RIGHT_TO_LEFT else 2 * base)
        elif kind == NUMBER:
            levels.append(2 if base or before == RIGHT_TO_LEFT else 0)
        else:
            levels.append(1 if before == after == RIGHT_TO_LEFT else base)
    return levels
