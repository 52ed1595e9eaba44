"""A scorer's process: what it answers, in what order, and what happens when it ends."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from turret_server.errors import EngineUnavailable, StartupError
from turret_server.scorer import link
from turret_server.scorer.link import ScorerLink, _batches
from turret_server.scorer.messages import ScorerSettings
from turret_server.scorer.start import running_scorers
from turret_server.scorer.text import Instruction, Row

QUESTION = "What is the capital of France?"
ANSWERS = ["Paris.", "the lazy dog", "", "Paris.", "née 🦊 " * 20]


@pytest.fixture
async def stub(monkeypatch):
    """A link to `stub.py`."""
    monkeypatch.setattr(
        link, "_COMMAND", (sys.executable, str(Path(__file__).with_name("stub.py")))
    )
    stub = ScorerLink("stub", ScorerSettings(model=""))
    await stub.start()
    yield stub
    await stub.close()


async def test_scores_are_those_of_transformers(cappy):
    settings = {"cappy": ScorerSettings(model=str(cappy))}
    async with running_scorers(settings, 16) as scorers:
        scorer = scorers["cappy"]
        rows = await scorer.rows(Instruction.of_text(QUESTION), ANSWERS[:4])
        values = await scorer.values(rows)
    tokenizer = AutoTokenizer.from_pretrained(cappy)
    model = AutoModelForSequenceClassification.from_pretrained(cappy).eval()
    with torch.no_grad():
        wanted = [
            model(**tokenizer([(QUESTION, answer)], return_tensors="pt")).logits[0][0].item()
            for answer in ANSWERS[:4]
        ]
    assert values == pytest.approx(wanted, abs=2e-5)
    assert len(set(values)) == 3


def rows(*lengths: int) -> list[Row]:
    return [Row([5 + n] * n) for n in lengths]


def test_rows_of_like_length_share_a_batch():
    assert [*_batches(rows(3, 10, 4, 9, 2), 20)] == [[1, 3], [2, 0, 4]]
    assert [*_batches(rows(50, 60), 20)] == [[1], [0]]


async def test_what_waits_takes_turns(stub):
    many = asyncio.create_task(stub.score(rows(*[60] * 40)))  # 20 batches
    await asyncio.sleep(0)  # it has the first turn
    assert await stub.score(rows(7, 8)) == [7, 8]
    assert not many.done()
    assert await many == [60] * 40


async def test_one_who_leaves_leaves_no_answer_behind(stub):
    leaving = asyncio.create_task(stub.score(rows(*[60] * 40)))
    await asyncio.sleep(0.005)
    leaving.cancel()
    assert await stub.score(rows(5)) == [5]
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_a_process_that_ends_is_started_again(stub):
    cut_off = asyncio.create_task(stub.score(rows(*[60] * 40)))
    await asyncio.sleep(0.005)
    stub._process.kill()
    with pytest.raises(EngineUnavailable, match="has ended"):
        await cut_off
    assert await stub.score(rows(5)) == [5]


async def test_one_that_ended_unseen_is_started_again(stub):
    process = stub._process
    process.kill()
    await process.wait()
    assert await stub.score(rows(5)) == [5]


async def test_one_that_hangs_as_it_is_started_again_holds_nobody_up_for_ever(stub, monkeypatch):
    stub._process.kill()
    await stub._process.wait()
    with monkeypatch.context() as patched:
        patched.setattr(link, "_COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
        patched.setattr(link, "_PATIENCE_S", 0.2)
        async with asyncio.timeout(10):
            with pytest.raises(EngineUnavailable, match="cannot answer"):
                await stub.score(rows(5))
    assert await stub.score(rows(5)) == [5]


async def test_nothing_is_started_after_the_end(stub):
    await stub.close()
    with pytest.raises(EngineUnavailable):
        await stub.score(rows(5))


async def test_what_cannot_be_served_says_why(cappy):
    settings = {"cappy": ScorerSettings(model=str(cappy), label="x")}
    with pytest.raises(StartupError, match=r"scorer 'cappy'.*there is no label 'x'"):
        async with running_scorers(settings, 16):
            pass


async def test_a_process_that_does_not_come_up(monkeypatch):
    monkeypatch.setattr(link, "_COMMAND", (sys.executable, "-c", ""))
    with pytest.raises(StartupError, match="ended while it loaded"):
        await ScorerLink("cappy", ScorerSettings(model="")).start()
