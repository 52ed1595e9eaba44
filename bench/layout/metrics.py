"""How much of a page is left in its text: words, neighbouring cells, order.

Every word stands on its page once, so a word of the text is found on the page by its letters. What
is separated by one space belongs together; two spaces or more part cells, as a reader sees it.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

from bench.layout.sheet import Sample, Truth
from wcwidth import wcswidth

# As cells are seen in a text: numbers of cells where their words are whole, else None.
Seen: TypeAlias = tuple[int | None, int | None, Literal["right", "below"]]

_CHUNK = re.compile(r"\S+(?: \S+)*")
_MARKS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # of direction: not seen


@dataclass(frozen=True, slots=True)
class Chunk:
    """Words that single spaces join, and where they stand."""

    words: tuple[str, ...]
    line: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one text.

    Attributes:
        adjacency: F1 of neighbouring cells, to the right and below; None without cells.
        order: share of words after which the next one of the reading order comes: behind it, or,
            from line to line, below it; None where more than one order is right.
        linear: 1 if the words stand in reading order from the first to the last, 0 if all are the
            other way round.
        glued: words that stand in the text as part of a longer one.
        lost: words that are not in it at all.
        invented: words that are not on the page, or are there more than once.
        chars: of the text.
        words: of the page.
    """

    adjacency: float | None
    order: float | None
    linear: float | None
    glued: int
    lost: int
    invented: int
    chars: int
    words: int


def chunks_of(text: str) -> list[Chunk]:
    """The chunks of a text, row by row; columns count as they are displayed."""
    found = []
    for number, line in enumerate(_MARKS.sub("", text.replace("\f", "\n")).split("\n")):
        line = line.expandtabs()
        for match in _CHUNK.finditer(line):
            start = match.start() if line.isascii() else max(wcswidth(line[: match.start()]), 0)
            width = max(wcswidth(match.group()), 1)
            found.append(Chunk(tuple(match.group().split()), number, start, start + width))
    return found


def score(sample: Sample, text: str) -> Scores:
    """Compare a text with what its page says."""
    chunks = chunks_of(text)
    words = [word.text for word in sample.page.words]
    glued, lost, invented = _losses(words, chunks)
    return Scores(
        adjacency=adjacency_f1(sample.truth, chunks) if sample.truth.cells else None,
        order=local_order(sample.truth.order, chunks) if sample.truth.order else None,
        linear=linear_order(sample.truth.order, chunks) if sample.truth.order else None,
        glued=glued,
        lost=lost,
        invented=invented,
        chars=len(text),
        words=len(words),
    )


def _losses(words: Sequence[str], chunks: Sequence[Chunk]) -> tuple[int, int, int]:
    """Words glued, lost, invented."""
    there = set(words)
    tokens = [word for chunk in chunks for word in chunk.words]
    missing = there - set(tokens)
    strange = [token for token in tokens if token not in there]
    joined = [token for token in strange if _made_of(token, missing)]
    glued = {word for word in missing if any(word in token for token in joined)}
    copies = len(tokens) - len(strange) - len(there & set(tokens))
    return len(glued), len(missing) - len(glued), len(strange) - len(joined) + copies


def _made_of(token: str, words: set[str]) -> bool:
    """Whether a token is nothing but words, one after the other."""
    longest = max(map(len, words), default=0)
    made = [True]  # whether the token's first letters are
    for end in range(1, len(token) + 1):
        starts = range(max(0, end - longest), end)
        made.append(any(made[start] and token[start:end] in words for start in starts))
    return made[-1]


def adjacency_f1(truth: Truth, chunks: Sequence[Chunk]) -> float:
    """F1 of the relations between neighbouring cells that can be seen in a text."""
    seen = {
        (a, b, way)
        for a, b, way in relations_seen(truth.cells, chunks)
        if not (way == "right" and a in truth.loose) and any(w == way for *_, w in truth.relations)
    }
    wanted = set(truth.relations)
    if truth.mirrored:
        wanted, seen = _either_way(wanted), _either_way(seen)
    right = len(seen & wanted)
    return 2 * right / (len(seen) + len(wanted)) if seen or wanted else 1.0


def _either_way(relations: set) -> set:
    """Cells beside each other; which comes first depends on how a terminal shows Hebrew."""
    return {(frozenset((a, b)), way) if way == "right" else (a, b, way) for a, b, way in relations}


def relations_seen(cells: Sequence[tuple[str, ...]], chunks: Sequence[Chunk]) -> list[Seen]:
    """Which cells are neighbours in a text.

    A chunk is a cell if its words are a cell's; chunks below each other whose words together are
    one are so as well. To the right counts by a cell's first line, below from its last.
    """
    cell_of = {word: i for i, cell in enumerate(cells) for word in cell}
    rows: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        if any(word in cell_of for word in chunk.words):
            rows.setdefault(chunk.line, []).append(chunk)
    lines = sorted(rows)
    pieces = _pieces(rows, lines, cell_of)
    label: dict[int, int] = {}
    for number, parts in pieces:
        if number is not None and tuple(w for part in parts for w in part.words) == cells[number]:
            label |= {id(chunk): number for chunk in parts}
    found: list[Seen] = []
    first = {id(parts[0]) for _, parts in pieces}
    last = {id(parts[-1]) for _, parts in pieces}
    for position, line in enumerate(lines):
        for i, chunk in enumerate(rows[line]):
            if id(chunk) in first and i + 1 < len(rows[line]):
                found.append((label.get(id(chunk)), label.get(id(rows[line][i + 1])), "right"))
            if id(chunk) in last:
                for lower in lines[position + 1 :]:
                    below = [other for other in rows[lower] if _overlap(chunk, other)]
                    if below:
                        pairs = [(label.get(id(chunk)), label.get(id(other))) for other in below]
                        found += [(a, b, "below") for a, b in pairs]
                        break
    return found


def _pieces(
    rows: dict[int, list[Chunk]], lines: list[int], cell_of: dict[str, int]
) -> list[tuple[int | None, list[Chunk]]]:
    """Chunks by cell: those below each other that hold words of one cell alone belong together."""
    pieces: list[tuple[int | None, list[Chunk]]] = []
    above: list[tuple[int | None, list[Chunk]]] = []
    for line in lines:
        here: list[tuple[int | None, list[Chunk]]] = []
        for chunk in rows[line]:
            owners = {cell_of.get(word) for word in chunk.words}
            number = owners.pop() if len(owners) == 1 else None
            before = [p for p in above if p[0] == number and _overlap(p[1][-1], chunk)]
            if number is not None and before:
                before[0][1].append(chunk)
                here.append(before[0])
            else:
                here.append((number, [chunk]))
                pieces.append(here[-1])
        above = here
    return pieces


def _overlap(a: Chunk, b: Chunk) -> bool:
    return a.start < b.end and b.start < a.end


def local_order(order: Sequence[tuple[str, ...]], chunks: Sequence[Chunk]) -> float:
    """Share of words whose successor follows: behind it, or below it at the end of a line."""
    place = {word: (c, i) for c, chunk in enumerate(chunks) for i, word in enumerate(chunk.words)}
    lines = [chunk.line for chunk in chunks]
    right = total = 0
    for line in order:
        for a, b in pairwise(line):
            total += 1
            if a in place and b in place:
                (c, i), (d, j) = place[a], place[b]
                right += c == d and j == i + 1
    for upper, lower in pairwise(order):
        if not upper or not lower:
            continue
        total += 1
        if upper[0] not in place or lower[0] not in place or upper[-1] not in place:
            continue
        (c, _), (d, j) = place[upper[0]], place[lower[0]]
        e, k = place[upper[-1]]
        after = (d == e and j == k + 1) or (d == e + 1 and j == 0)
        under = lines[d] > lines[c] and j == 0 and _overlap(chunks[c], chunks[d])
        between = [
            f
            for f, chunk in enumerate(chunks)
            if lines[c] < chunk.line < lines[d] and _overlap(chunks[c], chunk)
        ]
        right += after or (under and not between)
    return right / total if total else 1.0


def linear_order(order: Sequence[tuple[str, ...]], chunks: Sequence[Chunk]) -> float:
    """Kendall's distance from the reading order, as a share of pairs that stand in it."""
    rank = {word: i for i, word in enumerate(word for line in order for word in line)}
    ranks = [rank[word] for chunk in chunks for word in chunk.words if word in rank]
    if len(ranks) < 2:
        return 1.0
    before: list[int] = []
    kept = 0
    for value in ranks:
        kept += bisect_left(before, value)
        insort(before, value)
    return kept / (len(ranks) * (len(ranks) - 1) / 2)
