"""SIGTERM under load: answers are finished, new requests sent elsewhere, and patience ends."""

from __future__ import annotations

import asyncio
import json
import signal
import time

import httpx2
import psutil
import pytest

pytestmark = pytest.mark.e2e

STREAMS = 16
EXIT_S = 5.0


class Ending:
    """A server that is told to end while streams are open.

    Attributes:
        ends: of each stream, its last two events.
    """

    def __init__(self, server, tokens: int) -> None:
        self.server, self.tokens = server, tokens
        self.left = server.descendants()
        self.ends: list[list] = []

    async def run(self, meanwhile) -> None:
        """Open the streams, then do something, and read them to their ends."""
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(
            base_url=self.server.url, timeout=60, limits=limits
        ) as self.http:
            begun = asyncio.Semaphore(0)
            streams = [asyncio.create_task(self._stream(begun)) for _ in range(STREAMS)]
            for _ in streams:
                await begun.acquire()
            await meanwhile(self)
            self.ends = await asyncio.gather(*streams)

    def signal(self) -> None:
        self.server.process.send_signal(signal.SIGTERM)

    async def ask(self) -> httpx2.Response:
        """One more, over a connection of its own."""
        return await self.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})

    async def _stream(self, begun: asyncio.Semaphore) -> list:
        body = {"prompt": "One,", "max_tokens": self.tokens, "ignore_eos": True, "stream": True}
        last: list = []
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    if not last:
                        begun.release()
                    last = [*last[-1:], line[6:]]
        return last

    def reasons(self) -> set[str]:
        """Why the answers ended; each stream must have ended as streams do."""
        assert {done for _, done in self.ends} == {"[DONE]"}
        return {json.loads(event)["choices"][0]["finish_reason"] for event, _ in self.ends}

    def assert_gone(self, within_s: float) -> None:
        assert self.server.process.wait(timeout=within_s) == 0
        assert psutil.wait_procs(self.left, timeout=5)[1] == []


async def test_nothing_is_cut_short_and_new_requests_are_sent_elsewhere(serve):
    async def end(ending):
        ending.signal()
        for _ in range(100):
            if (ready := await ending.http.get("/ready")).status_code != 200:
                break
            await asyncio.sleep(0.01)
        assert ready.json()["reasons"] == {"draining": "the server is shutting down"}
        for _ in range(5):
            refused = await ending.ask()
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            await asyncio.sleep(0.1)

    with serve("--kv-cache-gib=0.3") as server:
        ending = Ending(server, tokens=150)
        await ending.run(end)
        assert ending.reasons() == {"length"}
        ending.assert_gone(EXIT_S)
        assert "Traceback" not in "".join(server.lines)


@pytest.mark.parametrize(("drain_s", "signals"), [(0, 1), (60, 2)])
async def test_an_end_that_cannot_wait_says_abort(serve, drain_s, signals):
    with serve("--kv-cache-gib=0.3", f"--drain-s={drain_s}") as server:
        ending = Ending(server, tokens=2000)

        async def end(ending):
            for _ in range(signals):
                ending.signal()
                await asyncio.sleep(0.3)

        began = time.monotonic()
        await ending.run(end)
        assert ending.reasons() == {"abort"}
        ending.assert_gone(EXIT_S)
        assert time.monotonic() - began < EXIT_S + 5
        assert "Traceback" not in "".join(server.lines)


async def test_a_whole_answer_that_is_cut_short_has_what_there_was(serve):
    with serve("--kv-cache-gib=0.1", "--drain-s=0.5") as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
            body = {"prompt": "One,", "max_tokens": 2000, "ignore_eos": True}
            asking = asyncio.create_task(http.post("/v1/completions", json=body))
            while not server.metrics()["turret_num_requests_running"]:
                await asyncio.sleep(0.02)
            server.process.send_signal(signal.SIGTERM)
            answer = (await asking).json()
        assert answer["choices"][0]["finish_reason"] == "abort"
        assert answer["choices"][0]["text"]
        assert server.process.wait(timeout=EXIT_S) == 0
