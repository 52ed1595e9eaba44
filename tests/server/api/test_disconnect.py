"""A client that leaves frees the engine, the queue and the adapters, streaming or not."""

from __future__ import annotations

import asyncio

import pytest


@pytest.fixture
def service(client):
    return client.app.state.service


def nothing_is_held(service):
    return service.admission.waiting == 0 and not service.catalog._uses


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_leaving_while_waiting_for_the_first_token(client, engine, service, stream, n):
    engine.gate, leave = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, leave.set)
    messages = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "stream": stream, "n": n}
    answer = await client.post("/v1/chat/completions", body, leave=leave)
    assert sorted(engine.cancelled) == sorted(request.id for request in engine.requests)
    assert len(engine.cancelled) == n
    assert nothing_is_held(service)
    assert answer.status in (0, 499)


@pytest.mark.parametrize("route", ["chat", "completions"])
async def test_leaving_a_stream_in_the_middle(client, engine, service, route):
    engine.delay_s, leave = 0.001, asyncio.Event()
    client.on_part = lambda answer: leave.set() if len(answer.parts) == 5 else None
    if route == "chat":
        body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
        answer = await client.post("/v1/chat/completions", body, leave=leave)
    else:
        body = {"prompt": "Hi", "max_tokens": 500, "stream": True}
        answer = await client.post("/v1/completions", body, leave=leave)
    assert engine.cancelled == [engine.requests[0].id]
    assert 5 <= len(answer.parts) <= 7
    assert b"[DONE]" not in answer.body
    assert nothing_is_held(service)


async def test_leaving_a_plain_completion_in_the_middle(client, engine, service):
    engine.delay_s, leave = 0.001, asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, leave.set)
    body = {"prompt": ["Hi", "Ho"], "max_tokens": 2000}
    await client.post("/v1/completions", body, leave=leave)
    assert len(engine.cancelled) == 2
    assert nothing_is_held(service)


async def test_a_server_that_raises_on_send(client, engine, service):
    """uvicorn swallows what is sent to a gone client; other servers raise OSError."""
    engine.delay_s = 0.001

    def gone(answer):
        raise OSError("connection reset")

    client.on_part = gone
    await client.chat(stream=True)
    assert len(engine.cancelled) == 1
    assert nothing_is_held(service)


async def test_two_hundred_that_leave_at_any_time(client, engine, service):
    engine.delay_s = 0.001

    async def one(i: int) -> None:
        leave = asyncio.Event()
        asyncio.get_running_loop().call_later(0.0007 * i, leave.set)
        body = {"prompt": "Hi", "max_tokens": 1000, "stream": bool(i % 2), "n": 1 + i % 3}
        await client.post("/v1/completions", body, leave=leave)

    await asyncio.gather(*(one(i) for i in range(200)))
    assert len(engine.cancelled) == len(engine.requests)
    assert not engine.finished
    assert nothing_is_held(service)


async def test_a_finished_answer_cancels_nothing(client, engine, service):
    engine.text("Hello")
    await client.chat()
    await client.chat(stream=True)
    assert engine.cancelled == []
    assert nothing_is_held(service)
