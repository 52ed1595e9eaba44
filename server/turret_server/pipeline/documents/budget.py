"""A document made to fit a number of tokens."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from turret_server.errors import PromptTooLong
from turret_server.pipeline.documents.relevance import bm25, ranked

TokenCounter = Callable[[Sequence[str]], list[int]]

MARK = "[...]"  # stands where lines were cut

_SPACES = re.compile(r" {3,}")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
# What is cut or kept as one: a line, or a piece of a long one, and the white space behind it.
_UNIT = re.compile(r"[^\n]{1,240}(?:\s+|\Z)|[^\n]{1,240}|\s+")
# What a line's relevance gives to the next and to the one before: a value often stands below the
# words that name it, seldom above. The top of a page has its title and the heads of its tables;
# its first line gets this part of the best line's relevance, later ones less.
_BELOW, _ABOVE, _TOP = 0.7, 0.5, 0.1


@dataclass(frozen=True, slots=True)
class Fitted:
    """What of a document fits.

    Attributes:
        texts: of the pages that are kept, in the order given.
        pages: their indices.
        dropped_pages: indices of the others.
        shrunk: runs of spaces were shortened: cells are still apart, but columns no longer align.
        cut: lines, or pieces of long lines, that were left out of pages kept.
    """

    texts: list[str]
    pages: list[int]
    dropped_pages: list[int]
    shrunk: bool = False
    cut: int = 0


def fit(texts: Sequence[str], question: str, count: TokenCounter, budget: int) -> Fitted:
    """Shorten pages until they have at most `budget` tokens together; what fits stays as it is.

    In turn: runs of three and more spaces become two; blank lines go; pages are taken by their
    relevance to the question while they fit, and the first that doesn't is cut to its most relevant
    lines. Deterministic. `count` is called three times for all pages, and O(log n) times for the
    one that is cut.

    Args:
        texts: the pages.
        question: decides what is relevant.
        count: tokens of each text. Their sum stands for the tokens of the texts in one prompt.
        budget: tokens for the pages alone.

    Raises:
        PromptTooLong: not even one line fits.
    """
    everything = list(range(len(texts)))
    if sum(count(texts)) <= budget:
        return Fitted(list(texts), everything, [])
    if budget <= 0:
        raise _nothing_fits(budget)
    dense = [_SPACES.sub("  ", text) for text in texts]
    shrunk = dense != list(texts)
    if shrunk and sum(count(dense)) <= budget:
        return Fitted(dense, everything, [], shrunk)
    dense = [_BLANK_LINES.sub("\n", text) for text in dense]
    tokens = count(dense)
    if sum(tokens) <= budget:
        return Fitted(dense, everything, [], shrunk)

    order = ranked(bm25(dense, question))
    # Whole pages that fit: the cumulated tokens of those before are within the budget.
    sums = list(accumulate(tokens[at] for at in order))
    whole = bisect_right(sums, budget)
    kept = {at: dense[at] for at in order[:whole]}
    left = budget - (sums[whole - 1] if whole else 0)
    text, cut = _cut(dense[order[whole]], question, count, left)
    if text:
        kept[order[whole]] = text
    if not any(kept.values()):
        raise _nothing_fits(budget)
    pages = sorted(kept)
    dropped = [at for at in everything if at not in kept]
    return Fitted([kept[at] for at in pages], pages, dropped, shrunk, cut if text else 0)


def _cut(text: str, question: str, count: TokenCounter, budget: int) -> tuple[str, int]:
    """Return the most relevant lines that fit, in their order, and how many others there are."""
    if not text:
        return "", 0
    units = _UNIT.findall(text)
    order = ranked(_in_context(bm25(units, question)))

    def shortened(number: int) -> str:
        return _with_marks(units, sorted(order[:number]))

    low, high = 0, len(units)  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if count([shortened(middle)])[0] <= budget:
            low = middle
        else:
            high = middle
    return (shortened(low) if low else ""), len(units) - low


def _in_context(scores: Sequence[float]) -> list[float]:
    """Let each line's score reach the lines around it, the less the farther they are."""
    spread = list(scores)
    for at in range(1, len(spread)):
        spread[at] = max(spread[at], spread[at - 1] * _BELOW)
    for at in reversed(range(len(spread) - 1)):
        spread[at] = max(spread[at], spread[at + 1] * _ABOVE)
    top = _TOP * max(spread) / len(spread)
    return [score + top * (len(spread) - at) for at, score in enumerate(spread)]


def _with_marks(units: Sequence[str], kept: Sequence[int]) -> str:
    parts: list[str] = []
    after = 0
    for at in kept:
        if at > after:
            parts.append(f"{MARK}\n")
        parts.append(units[at])
        after = at + 1
    if after < len(units):
        parts.append(MARK)
    return "".join(parts).rstrip()


def _nothing_fits(budget: int) -> PromptTooLong:
    return PromptTooLong(
        "the document does not fit",
        f"{max(budget, 0):,} tokens are left for it, too few for any line",
        "Ask for a shorter answer, or serve the model with a longer context.",
    )
