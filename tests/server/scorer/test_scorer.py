"""Long instructions are read in pieces, in threads that prompts do not need."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from turret_server.scorer.scorer import Scorer
from turret_server.scorer.text import Instruction, Row

LONG = Instruction.of_text("a" * 60_000)
ANSWERS = [str(i) for i in range(30)]


@dataclass
class Texts:
    """Notes who was asked how much, and where."""

    pieces: list[tuple[str, int]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)

    def rows(self, instruction: Instruction, answers: Sequence[str]) -> list[Row]:
        self.gate.wait(10)
        self.pieces.append((instruction.text[:1], len(answers)))
        self.threads.add(threading.current_thread().name.rstrip("0123456789"))
        return [Row([int(answer)]) for answer in answers]

    async def score(self, rows: Sequence[Row]) -> list[float]:
        return [0.0] * len(rows)


@pytest.fixture
def texts() -> Texts:
    return Texts()


@pytest.fixture
def scorer(texts) -> Scorer:
    return Scorer("judge", texts, texts, 1, 100)


async def test_a_long_query_is_read_for_a_few_documents_at_once(scorer, texts):
    texts.gate.set()
    rows = await scorer.rows(LONG, ANSWERS)
    assert [row.ids for row in rows] == [[i] for i in range(30)]
    assert texts.pieces == [("a", 8)] * 3 + [("a", 6)]
    assert texts.threads == {"scorer-texts_"}


async def test_a_short_query_is_read_at_once(scorer, texts):
    texts.gate.set()
    assert len(await scorer.rows(Instruction.of_text("a"), ANSWERS)) == 30
    assert texts.pieces == [("a", 30)]


async def test_others_have_their_turn_between_pieces(scorer, texts):
    longs = [asyncio.create_task(scorer.rows(LONG, ANSWERS)) for _ in range(2)]
    short = asyncio.create_task(scorer.rows(Instruction.of_text("b"), ["1"]))
    await asyncio.sleep(0)  # all are queued: two threads, and the short one behind
    texts.gate.set()
    await asyncio.gather(short, *longs)
    assert ("b", 1) in texts.pieces[:4]


async def test_who_leaves_has_no_more_pieces_read(scorer, texts):
    task = asyncio.create_task(scorer.rows(LONG, ANSWERS))
    await asyncio.sleep(0)
    task.cancel()
    texts.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await scorer.rows(Instruction.of_text("b"), ["1"])  # behind what was queued
    assert sum(count for name, count in texts.pieces if name == "a") <= 8
