"""Clients that leave, at any moment and by the hundred, leave nothing behind."""

from __future__ import annotations

import asyncio
import random

import pytest

pytestmark = pytest.mark.e2e

NUM_CLIENTS = 100
LONGEST = 12  # tokens until a client leaves


class Clock:
    """Counts the tokens of one long stream: time in the batch, whatever the machine does."""

    def __init__(self) -> None:
        self.now = 0
        self._ticked = asyncio.Condition()

    async def run(self, events) -> None:
        async for _ in events:
            async with self._ticked:
                self.now += 1
                self._ticked.notify_all()

    async def wait(self, ticks: int) -> None:
        until = self.now + ticks
        async with self._ticked:
            await self._ticked.wait_for(lambda: self.now >= until)


async def test_a_hundred_clients_leave_at_random_tokens(
    server, http, names, completion, open_stream, is_quiet, wait_until, adapters
):
    rng = random.Random(0)
    clock, room = Clock(), asyncio.Semaphore(24)

    async def leave_a_stream(model, after):
        async with open_stream(completion(model)) as events:
            for _ in range(after):
                await anext(events)

    async def leave_an_answer(model, after):
        """Nothing shows how far it is, so it leaves when the clock has ticked."""
        asking = asyncio.create_task(http.post("/v1/completions", json=completion(model)))
        await clock.wait(after)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    async def one(number):
        model = rng.choice([None, *names, f"{names[0]}+{names[1]}"])
        after = rng.randrange(LONGEST)
        async with room:
            await (leave_a_stream if number % 2 else leave_an_answer)(model, after)

    async with open_stream(completion(max_tokens=8000)) as events:
        ticking = asyncio.create_task(clock.run(events))
        await clock.wait(1)
        await asyncio.gather(*(one(number) for number in range(NUM_CLIENTS)))
        assert not ticking.done()
        ticking.cancel()
    wait_until(is_quiet, 10, "requests and KV blocks return to zero")

    # An adapter that is pinned stays on the device when it is unloaded; none does.
    for name in names:
        assert (await http.delete(f"/v1/adapters/{name}")).status_code == 200
    loaded = server.metrics()["turret_adapters_loaded"]
    wait_until(lambda: server.metrics()["turret_adapters_resident"] == loaded, 10, "no pin is left")
    for name in names:
        response = await http.put(f"/v1/adapters/{name}", json={"path": str(adapters[name])})
        assert response.status_code == 201
