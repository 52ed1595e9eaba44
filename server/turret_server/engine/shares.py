"""Parts of a step. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from turret_server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Share:
    """One sequence's part of a step: tokens [start, start + count)."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """The step computes the last known token, so a new one follows."""
        return self.start + self.count == len(self.sequence.tokens)


def portion_of(sequence: Sequence, budget: int) -> list[Share]:
    """What of a request fits the budget; members hold their last token back for each other."""
    if not sequence.others:
        count = min(sequence.remaining, budget)
        return [Share(sequence, sequence.num_computed, count)] if count else []
    shares, members = [], sequence.members
    held = sum(member.remaining for member in members) > budget
    for member in members:
        count = min(member.remaining - held, budget)
        if count > 0:
            shares.append(Share(member, member.num_computed, count))
            budget -= count
    return shares
