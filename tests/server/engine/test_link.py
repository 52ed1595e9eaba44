"""The API's end of the process boundary, without an engine behind it."""

from __future__ import annotations

import asyncio
import time

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
