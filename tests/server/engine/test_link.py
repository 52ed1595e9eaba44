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
from turret_server.errors import EngineUnavailable, TurretError

READY = m.EngineReady(
    pid=1,
    max_model_len=2048,
    vocab_size=100,
    kv_blocks=128,
    kv_block_tokens=16,
    dtype="float32",
    device="cpu",
    max_adapter_rank_rows=512,
    weights_digest="0123456789abcdef",
)


def _info(digest):
    return m.AdapterInfo(
        digest=digest,
        kind="lora",
        rank=8,
        targets=["q_proj"],
        num_layers={"": 30},
        num_parameters=1000,
        num_bytes=2000,
    )


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


async def test_a_profile_that_failed_is_an_error_and_another_can_be_taken(link):
    link.ready = READY
    receiving = asyncio.create_task(link._receive(link._socket))
    for problem in ("RuntimeError: no events", ""):
        asked = asyncio.create_task(link.profile(1, 1.0))
        raw = await asyncio.to_thread(link.engine.recv)
        request = msgspec.msgpack.decode(raw, type=m.Inbound)
        answer = m.Profiled(request.operation, 1, 0.5, [], problem=problem)
        link.engine.send(msgspec.msgpack.encode(answer))
        if problem:
            with pytest.raises(TurretError, match="no events") as caught:
                await asked
            assert caught.value.status == 500
        else:
            assert (await asked).steps == 1
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


@pytest.fixture
async def operations(link, tmp_path):
    """The operations of a link, as an engine gets them, and how it answers them."""
    context, endpoint = zmq.asyncio.Context(), f"ipc://{tmp_path}/operations"
    link._operations = _bind(context, endpoint)
    socket = context.socket(zmq.PAIR)
    socket.connect(endpoint)
    receiving = asyncio.create_task(link._receive_results(link._operations))

    async def receive():
        message = await asyncio.wait_for(socket.recv(), 5)
        return msgspec.msgpack.decode(message, type=m.Operation)

    async def answer(result):
        await socket.send(msgspec.msgpack.encode(result))

    yield receive, answer
    receiving.cancel()
    for each in (link._operations, socket):
        each.close(linger=0)
    context.destroy(linger=0)


async def test_an_engine_serves_without_what_it_cannot_load_again(link, operations):
    """The folder of one has changed. Once no engine served any more after that."""
    receive, answer = operations
    for digest in "abc":
        link._kept._loads[digest] = m.LoadAdapter(operation="", name=digest, path=digest)
    link._kept._held = ("a", "b")
    welcoming = asyncio.create_task(link._welcome(READY))
    for digest in "abc":
        load = await receive()
        assert load.path == digest
        if digest == "a":
            error = m.ErrorInfo("NotFound", "adapter 'a' was not loaded", "there is no folder", "")
            await answer(m.OperationFailed(load.operation, error))
        else:
            await answer(m.AdapterLoaded(operation=load.operation, info=_info(digest)))
    hold = await receive()
    assert hold.digests == ["b"]
    await answer(m.OperationDone(hold.operation))
    await asyncio.wait_for(welcoming, 5)
    assert link.ready is READY

    # Another is pinned, and then what was lost is there again: once it was in the way of the one,
    # and its own pin was forgotten.
    holding = asyncio.create_task(link.hold_adapters(["a", "b", "c"]))
    hold = await receive()
    assert hold.digests == ["b", "c"]
    await answer(m.OperationDone(hold.operation))
    await holding
    loading = asyncio.create_task(link.load_adapter("a", "a"))
    await answer(m.AdapterLoaded(operation=(await receive()).operation, info=_info("a")))
    hold = await receive()
    assert hold.digests == ["a", "b", "c"]
    await answer(m.OperationDone(hold.operation))
    await loading


async def test_what_is_unloaded_while_an_engine_comes_back_does_not_stay_in_it(link, operations):
    receive, answer = operations
    for digest in "ab":
        link._kept._loads[digest] = m.LoadAdapter(operation="", name=digest, path=digest)
    welcoming = asyncio.create_task(link._welcome(READY))
    loads = [await receive() for _ in "ab"]
    with pytest.raises(EngineUnavailable):
        await link.unload_adapter("a")
    for load in loads:
        await answer(m.AdapterLoaded(operation=load.operation, info=_info(load.path)))
    await answer(m.OperationDone((await receive()).operation))  # nothing is held
    unload = await receive()
    assert isinstance(unload, m.UnloadAdapter)
    assert unload.digest == "a"
    assert link.ready is None
    await answer(m.OperationDone(unload.operation))
    await asyncio.wait_for(welcoming, 5)
    assert link.ready is READY


async def test_an_engine_serves_whatever_happens_while_it_gets_its_adapters_again(
    link, monkeypatch
):
    async def fail():
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(link._kept, "restore", fail)
    await asyncio.wait_for(link._welcome(READY), 5)
    assert link.ready is READY
    assert link._up.is_set()
