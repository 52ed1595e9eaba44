"""Which of a request's adapters act on which of its positions, where not all act on all."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from turret_adapters.spec import NO_END, Positions


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
        return [
            Piece(a, b, self.acting[i])
            for i, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False), first)
        ]

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
