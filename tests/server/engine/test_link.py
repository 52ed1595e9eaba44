"""The API's end of the process boundary, without an engine behind it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from turret_server.engine import messages as m
from turret_server.engine.link import EngineLink, _bind
from turret_server.engine.settings import EngineSettings


@pytest.fixture
async def link(tmp_path):
    """A link whose engine is the test: `link.engine` is its socket."""
    context, endpoint = zmq.asyncio.Context(), f"ipc://{tmp_path}/engine"
    link = EngineLink(EngineSettings(model="none"))
    link._socket = _bind(context, endpoint)
    link.engine = zmq.Context.instance().socket(zmq.PAIR)
    link.engine.connect(endpoint)
    link.engine.send(b"connected")
    assert await link._socket.recv() == b"connected"
    yield link
    for socket in (link.engine, link._socket):
        socket.close(linger=0)
    context.destroy(linger=0)


async def test_a_cancel_does_not_swallow_what_has_just_arrived(link):
    """Sending takes the socket's wake-up, which is an edge: what came must be looked for then."""
    receiving = asyncio.create_task(link._receive(link._socket))
    for number in range(1, 21):
        await asyncio.sleep(0.01)  # it waits for a message
        link.engine.send(msgspec.msgpack.encode(m.EngineStats(steps=number)))
        time.sleep(0.01)  # which is there now, and the loop does not know yet
        link._cancel("gone")
        async with asyncio.timeout(2):
            while link.stats.steps != number:
                await asyncio.sleep(0.001)
    receiving.cancel()


async def test_a_cancel_goes_out_at_once(link):
    link._cancel("gone")
    assert link.engine.poll(1000)
    assert msgspec.msgpack.decode(link.engine.recv(), type=m.Inbound) == m.CancelRequest("gone")


async def test_an_engine_that_cannot_be_started_again_now_is_started_later(monkeypatch):
    """Processes or files may lack for a moment; a server without an engine must not stay so."""
    link, attempts, again = EngineLink(EngineSettings(model="none")), [], asyncio.Event()

    async def serve_once(context, endpoint):
        folder = Path(endpoint.removeprefix("ipc://")).parent
        attempts.append(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
        if len(attempts) == 2:
            raise BlockingIOError("no process can be started")
        if len(attempts) == 3:
            again.set()
            await asyncio.sleep(60)
        return True

    monkeypatch.setattr(link, "_serve_once", serve_once)
    supervision = asyncio.create_task(link._supervise())
    await asyncio.wait_for(again.wait(), 10)
    assert link.restarts == 2
    supervision.cancel()
    await asyncio.wait({supervision})
    assert len(set(attempts)) == 3
    assert not any(folder.exists() for folder in attempts)


async def test_an_engine_that_cannot_be_started_at_all_says_so(monkeypatch):
    link = EngineLink(EngineSettings(model="none"))

    async def serve_once(context, endpoint):
        raise OSError("no process can be started")

    monkeypatch.setattr(link, "_serve_once", serve_once)
    with pytest.raises(OSError, match="no process"):
        await link.start()
