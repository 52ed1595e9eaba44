"""A scorer as requests see it: texts in, scores out, and a bound on what may wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

from turret_server.errors import BadRequest, Overloaded
from turret_server.scorer.text import Instruction, Row, ScorerText

# A query that a chat template reads once for each of a thousand documents takes minutes: not in
# asyncio's threads, which prompts need, and in pieces, between which others have their turn.
_THREADS = ThreadPoolExecutor(2, "scorer-texts")
_PIECE_CHARS = 500_000  # of the instruction, as often as it is read: a second or less


class RowScorer(Protocol):
    """What scores token rows: `ScorerLink`."""

    async def score(self, rows: Sequence[Row]) -> list[float]:
        """One score for each row."""
        ...


class Scorer:
    """A scorer of the server.

    Args:
        name: that requests know it by.
        text: makes its token rows.
        rows: scores them.
        num_labels: outputs of the model; scores are log-probabilities where it has several.
        max_waiting: answers that may wait for their scores.
    """

    def __init__(
        self, name: str, text: ScorerText, rows: RowScorer, num_labels: int, max_waiting: int
    ) -> None:
        self.name, self.num_labels = name, num_labels
        self._text, self._rows = text, rows
        self._waiting, self._max_waiting = 0, max_waiting

    @contextmanager
    def enter(self, count: int, param: str) -> Iterator[None]:
        """Room for the scores of so many answers, for as long as their request runs.

        Args:
            count: of the answers.
            param: the field that asks for them.

        Raises:
            BadRequest: they are more than may ever wait.
            Overloaded: too many wait already.
        """
        if count > self._max_waiting:
            raise BadRequest(
                f"the request has {count} texts to score",
                f"at most {self._max_waiting} can wait at once",
                "Split it.",
                param=param,
            )
        if self._waiting + count > self._max_waiting:
            raise Overloaded(
                f"the scorer {self.name!r} is overloaded",
                f"{self._waiting} texts wait for it; {self._max_waiting} may",
                "Try again later, or raise --max-waiting.",
            )
        self._waiting += count
        try:
            yield
        finally:
            self._waiting -= count

    async def rows(self, instruction: Instruction, answers: Sequence[str]) -> list[Row]:
        """What the scorer reads of answers to an instruction.

        Raises:
            BadRequest: it is no conversation that the scorer's template knows.
        """
        loop, rows = asyncio.get_running_loop(), list[Row]()
        step = max(1, _PIECE_CHARS // max(1, len(instruction.text)))
        for at in range(0, len(answers), step):
            piece = answers[at : at + step]
            rows += await loop.run_in_executor(_THREADS, self._text.rows, instruction, piece)
        return rows

    async def values(self, rows: Sequence[Row]) -> list[float]:
        """The score of each row; equal ones are scored once.

        Raises:
            EngineUnavailable: the scorer's process has ended.
        """
        # A thousand rows are millions of tokens: a tenth of a second in which nobody gets one.
        unique, places = await asyncio.to_thread(_distinct, rows)
        values = await self._rows.score(unique)
        return [values[place] for place in places]


def _distinct(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """Each different row once, and where among them each row is."""
    seen: dict[tuple[int, ...], int] = {}
    unique: list[Row] = []
    places = []
    for row in rows:
        place = seen.setdefault(tuple(row.ids), len(unique))
        if place == len(unique):
            unique.append(row)
        places.append(place)
    return unique, places
