"""The orders in which the words of a page follow each other.

One is that of the page's text, line by line. But a cell of several lines stands in pieces there,
between the pieces of the cells beside it: so cells are also read from top to bottom, and where a
line ends within a cell, a hyphenated word is put together.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from turret_server.pipeline.documents.cite.tokens import CURRENCY, number_key, tokenize
from turret_server.pipeline.documents.layout.text import PageText
from turret_server.pipeline.documents.page import Page

Boxes: TypeAlias = Sequence[Sequence[float]]  # left, top, right and bottom, of each word

_HYPHENS = ("-", "‐", "\u00ad")
_MAX_LINES_BELOW = 3  # lines of the text, where cells beside one have lines of their own
_MAX_LINES_OF_A_WORD = 3
_MAX_GAP = 1.0  # between the lines of a cell, in heights of a line
# The words of "1 234 567,50"
_GROUPS_HEAD = re.compile(rf"[-−]?[{CURRENCY}]?[1-9]\d{{0,2}}")
_GROUP = re.compile(r"\d{3}")
_LAST_GROUP = re.compile(r"\d{3}(?:[.,]\d+)?")


@dataclass(slots=True)
class Reading:
    """Tokens in the order of a reading.

    Attributes:
        keys: of the tokens.
        words: for each token, indices of the page's words that it comes from; seldom more than one.
        after: words without a token, such as a dash, by the index of the token before them.
    """

    keys: list[str] = field(default_factory=list)
    words: list[tuple[int, ...]] = field(default_factory=list)
    after: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def add(self, word: int, keys: Sequence[str]) -> None:
        """Append the tokens of one word."""
        if keys:
            self.keys.extend(keys)
            self.words.extend([(word,)] * len(keys))
        elif last := len(self.keys):
            self.after[last - 1] = (*self.after.get(last - 1, ()), word)


class Cell(NamedTuple):
    """Words that follow each other on a line, a single space apart, and their box."""

    words: list[int]
    left: float
    top: float
    right: float
    bottom: float


def readings(page: Page, text: PageText, boxes: Boxes) -> list[Reading]:
    """Return a page's readings, by lines first. Words left out of the text have no part in them."""
    order = [at for at, (start, _) in enumerate(text.spans) if start >= 0]
    order.sort(key=lambda at: text.spans[at][0])
    tokens = _tokens(page, order)
    by_line = Reading()
    for at in order:
        by_line.add(at, tokens[at])
    by_cell = _by_cell(page, _chains(_lines(order, text, boxes)), tokens)
    return [by_line] if by_cell.keys == by_line.keys else [by_line, by_cell]


def _tokens(page: Page, order: Sequence[int]) -> dict[int, list[str]]:
    """Return each word's tokens; all are found in one pass, which is faster."""
    tokens: dict[int, list[str]] = {at: [] for at in order}
    following = iter(order)
    end, found = -1, []
    for token in tokenize("\n".join([page.words[at].text for at in order])):
        while token.start > end:
            at = next(following)
            end, found = end + 1 + len(page.words[at].text), tokens[at]
        found.append(token.key)
    return tokens


def _lines(order: Sequence[int], text: PageText, boxes: Boxes) -> list[list[Cell]]:
    """Return the cells of each line, parted as the spaces and line breaks of the text part them."""
    lines: list[list[list[int]]] = []
    end = 0
    for at in order:
        start = text.spans[at][0]
        if not lines or text.text.find("\n", end, start) >= 0:
            lines.append([[at]])
        elif start - end > 1:
            lines[-1].append([at])
        else:
            lines[-1][-1].append(at)
        end = text.spans[at][1]
    return [[_cell(words, boxes) for words in line] for line in lines]


def _cell(words: list[int], boxes: Boxes) -> Cell:
    if len(words) == 1:
        return Cell(words, *boxes[words[0]])
    lefts, tops, rights, bottoms = zip(*[boxes[at] for at in words], strict=True)
    return Cell(words, min(lefts), min(tops), max(rights), max(bottoms))


def _chains(lines: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Return cells in chains, each cell right below the one before."""
    sorted_lines = [sorted(line, key=lambda cell: cell.left) for line in lines]
    lefts = [[cell.left for cell in line] for line in sorted_lines]
    chains: list[list[Cell]] = []
    chain_of: dict[int, list[Cell]] = {}  # by the first word of a cell
    for number, line in enumerate(lines):
        for cell in line:
            chain = chain_of.get(cell.words[0])
            if chain is None:
                chain = []
                chains.append(chain)
            chain.append(cell)
            for below in range(number + 1, min(number + 1 + _MAX_LINES_BELOW, len(lines))):
                found = _below(cell, sorted_lines[below], lefts[below])
                if found is not None:
                    chain_of.setdefault(found.words[0], chain)
                    break
    return chains


def _below(cell: Cell, line: Sequence[Cell], lefts: Sequence[float]) -> Cell | None:
    """Return the cell of a line that stands closely below `cell`; None if there is none."""
    _, left, top, right, bottom = cell
    height = bottom - top
    end = bisect_left(lefts, right)
    for other in reversed(line[max(end - 3, 0) : end]):
        shared = min(right, other.right) - max(left, other.left)
        narrower = min(right - left, other.right - other.left)
        if shared * 2 >= narrower and -height < other.top - bottom <= _MAX_GAP * height:
            return other
    return None


def _by_cell(
    page: Page, chains: Sequence[Sequence[Cell]], tokens: Mapping[int, list[str]]
) -> Reading:
    reading = Reading()
    keys, words = reading.keys, reading.words
    for chain in chains:
        hyphenated = False  # the line before ended with a hyphen
        for cell in chain:
            grouped = _grouped_numbers(page, cell.words) if len(cell.words) > 1 else {}
            for number, at in enumerate(cell.words):
                if at in grouped:
                    key, of = grouped[at]
                    if key:
                        keys.append(key)
                        words.append(of)
                    continue
                found = tokens[at]
                if hyphenated and number == 0 and found and found[0].isalpha():
                    keys[-1] += found[0]
                    words[-1] += (at,)
                    found = found[1:]
                    if not found:
                        continue
                reading.add(at, found)
            last = cell.words[-1]
            hyphenated = (
                page.words[last].text.endswith(_HYPHENS)
                and bool(tokens[last])
                and tokens[last][-1].isalpha()
                and len(words[-1]) < _MAX_LINES_OF_A_WORD
            )
    return reading


def _grouped_numbers(page: Page, words: Sequence[int]) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Return numbers whose groups of digits are words of their own: by their first word the key.

    Their other words are in the result with an empty key.
    """
    found: dict[int, tuple[str, tuple[int, ...]]] = {}
    texts = [page.words[at].text for at in words]
    if not any(map(_GROUP.match, texts[1:])):
        return found
    at = 0
    while at < len(texts) - 1:
        end = at + 1
        if _GROUPS_HEAD.fullmatch(texts[at]):
            while end < len(texts) and _GROUP.fullmatch(texts[end]):
                end += 1
            if end < len(texts) and _LAST_GROUP.fullmatch(texts[end]):
                end += 1
            key = number_key("".join(texts[at:end]))
            if end > at + 1 and key is not None:
                found |= dict.fromkeys(words[at + 1 : end], ("", ()))
                found[words[at]] = key, tuple(words[at:end])
        at = end
    return found
