"""Where adapters act in a request: the rule of one, and what it comes to for several. No torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

NO_END = 1 << 62  # further than any sequence goes


@dataclass(frozen=True, slots=True)
class Positions:
    """Where in a request an adapter acts, for kinds that do not act everywhere.

    Attributes:
        invocation: token ids; from where they last occur in the prompt on, or nowhere (aLoRA).
        first: so many tokens at the beginning of the prompt, at most half of it (LoReFT's f).
        last: so many tokens at its end, at most half of it (LoReFT's l).
        generating: the last token of the prompt and all that follow: every row that a token is
            sampled from (ITI).
    """

    invocation: tuple[int, ...] = ()
    first: int = 0
    last: int = 0
    generating: bool = False

    def spans(self, prompt: Sequence[int]) -> list[tuple[int, int]]:
        """Where it acts on a request with this prompt: [start, stop) pairs, ascending, apart."""
        end = len(prompt)
        if self.generating:
            return [(max(end - 1, 0), NO_END)]
        if self.invocation:
            size = len(self.invocation)
            for start in range(end - size, -1, -1):
                if tuple(prompt[start : start + size]) == self.invocation:
                    return [(start, NO_END)]
            return []
        first, last = min(self.first, end // 2), end - min(self.last, end // 2)
        if first == last:
            return [(0, end)] if end else []
        return [span for span in ((0, first), (last, end)) if span[0] < span[1]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions [start, stop) of a request, and the adapters (by number) that act there."""

    start: int
    stop: int
    acting: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reach:
    """What acts where in one request; it never changes while the request runs.

    Attributes:
        num_virtual: positions before the prompt.
        borders: where the acting adapters change, ascending; the end of the virtual tokens is one.
        acting: numbers of the adapters before the first border, between two, behind the last.
        everywhere: numbers of the adapters that act on every position.
    """

    num_virtual: int
    borders: tuple[int, ...]
    acting: tuple[tuple[int, ...], ...]
    everywhere: frozenset[int]

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """[start, stop) cut at the borders."""
        first, last = bisect_right(self.borders, start), bisect_right(self.borders, stop - 1)
        cuts = [start, *self.borders[first:last], stop]
        return [Piece(a, b, self.acting[i]) for i, (a, b) in enumerate(pairwise(cuts), first)]

    def key(self, start: int, stop: int, names: Sequence[str]) -> str:
        """Equal for [start, stop) of two requests where the same adapters act on the same places.

        Args:
            start: first position.
            stop: behind the last.
            names: of the adapters.

        Returns:
            "" where none but those that act everywhere do.
        """
        parts: list[str] = []
        for piece in self.pieces(start, stop):
            partial = [names[i] for i in piece.acting if i not in self.everywhere]
            if partial:
                parts.append(f"{piece.start - start}-{piece.stop - start}:{'|'.join(partial)}")
        return ";".join(parts)


def find_reach(
    prompt: Sequence[int], rules: Sequence[tuple[Positions | None, int]]
) -> Reach | None:
    """Resolve the rules of a request's adapters.

    Args:
        prompt: its token ids.
        rules: for each adapter, where it acts (None for everywhere; positions of the prompt are
            counted behind the virtual tokens), and how many virtual tokens it brings. An adapter
            always acts on its own virtual tokens.

    Returns:
        None where every adapter acts everywhere and nothing is put before the prompt.
    """
    num_virtual = sum(count for _, count in rules)
    if not num_virtual and all(positions is None for positions, _ in rules):
        return None
    every: list[list[tuple[int, int]]] = []
    for positions, count in rules:
        if positions is None:
            every.append([(0, NO_END)])
            continue
        shifted = [(a + num_virtual, b + num_virtual) for a, b in positions.spans(prompt)]
        every.append([*([(0, count)] if count else []), *shifted])
    ends = {end for spans in every for span in spans for end in span} | {num_virtual}
    borders = sorted(end for end in ends if 0 < end < NO_END)
    acting = tuple(
        tuple(i for i, spans in enumerate(every) if any(a <= at < b for a, b in spans))
        for at in (0, *borders)
    )
    everywhere = frozenset.intersection(*map(frozenset, acting))
    return Reach(num_virtual, tuple(borders), acting, everywhere)
