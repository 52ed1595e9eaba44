"""Few places, and owners that take turns."""

from __future__ import annotations

import asyncio

from turret_server.pipeline.documents.turns import Turns


async def started(turns: Turns, *owners: str) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(turns.acquire(owner)) for owner in owners]
    await asyncio.sleep(0)
    return tasks


async def test_owners_take_turns_however_many_one_sends():
    turns, order = Turns(1), []

    async def work(owner: str) -> None:
        await turns.acquire(owner)
        order.append(owner)
        await asyncio.sleep(0)
        turns.release()

    await asyncio.gather(*map(work, ["noisy"] * 5 + ["quiet"] * 2))
    assert order == ["noisy", "noisy", "quiet", "noisy", "quiet", "noisy", "noisy"]
    assert not turns.full


async def test_who_has_gone_away_is_passed_over():
    turns = Turns(1)
    await turns.acquire("a")
    first, second, third = await started(turns, "b", "b", "c")
    first.cancel()
    await asyncio.sleep(0)
    assert (turns.waiting(), turns.waiting("b"), turns.waiting("x")) == (2, 1, 0)
    turns.release()
    await second
    assert not third.done()
    turns.release()
    await third
    turns.release()
    assert not turns.full


async def test_a_place_given_to_one_that_leaves_goes_on():
    turns = Turns(1)
    await turns.acquire("a")
    first, second = await started(turns, "b", "c")
    turns.release()  # to the first, which does not know it yet
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await second
    assert turns.full
    turns.release()
    assert not turns.full
