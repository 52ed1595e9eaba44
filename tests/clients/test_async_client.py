from __future__ import annotations

from typing import Any

import pytest

from turret_client import AsyncClient, Finished, NotFound, TextDelta, TurretError


async def test_a_chat_answer(script: Any, async_client: AsyncClient) -> None:
    async with async_client as client:
        answer = await client.chat("2 + 2?", model="sql", adapters=["formal"])
    assert answer.text == "Four."
    assert script.bodies() == [
        {
            "messages": [{"role": "user", "content": "2 + 2?"}],
            "model": "sql",
            "adapters": [{"name": "formal"}],
        }
    ]


async def test_a_stream(script: Any, async_client: AsyncClient, events: Any) -> None:
    script.answers(
        events(
            {"choices": [{"index": 0, "delta": {"content": "Fo"}}]},
            {"choices": [{"index": 0, "delta": {"content": "ur"}, "finish_reason": "stop"}]},
        )
    )
    async with await async_client.chat("2 + 2?", stream=True) as stream:
        assert [event async for event in stream] == [
            TextDelta(0, "Fo"),
            TextDelta(0, "ur"),
            Finished(0, "stop"),
        ]
        assert (await stream.answer()).text == "Four"


async def test_texts(script: Any, async_client: AsyncClient, events: Any) -> None:
    script.answers(events({"choices": [{"index": 0, "text": "Four"}]}))
    stream = await async_client.complete("2 + 2 =", stream=True)
    assert [text async for text in stream.texts()] == ["Four"]


async def test_a_stream_that_is_cut_off(
    script: Any, async_client: AsyncClient, events: Any
) -> None:
    script.answers(events({"choices": []}, done=False))
    stream = await async_client.chat("2 + 2?", stream=True)
    with pytest.raises(TurretError, match="cut off"):
        await stream.answer()


async def test_leaving_a_stream_early_closes_it(
    script: Any, async_client: AsyncClient, events: Any
) -> None:
    script.answers(events(*[{"choices": [{"index": 0, "text": "a"}]}] * 3))
    async with await async_client.complete("a", stream=True) as stream:
        async for _ in stream:
            break
    assert stream._response.is_closed


async def test_routes(script: Any, async_client: AsyncClient) -> None:
    card = {"id": "sql", "kind": "lora", "digest": "d"}
    script.answers({"data": [card]}, card, card, card, {"status": "ok"}, {"status": "ready"})
    assert [adapter.id for adapter in await async_client.adapters.list()] == ["sql"]
    assert (await async_client.adapters.get("sql")).digest == "d"
    await async_client.adapters.load("sql", "/a/sql")
    await async_client.adapters.unload("sql")
    assert await async_client.health()
    assert await async_client.ready()
    assert [(request.method, request.url.path) for request in script.requests] == [
        ("GET", "/v1/adapters"),
        ("GET", "/v1/adapters/sql"),
        ("PUT", "/v1/adapters/sql"),
        ("DELETE", "/v1/adapters/sql"),
        ("GET", "/health"),
        ("GET", "/ready"),
    ]


async def test_adapters_are_loaded_derived_and_pinned(
    script: Any, async_client: AsyncClient
) -> None:
    script.answers({"id": "sql", "kind": "lora", "digest": "d", "pinned": True})
    adapters = async_client.adapters
    await adapters.load("sql", "/a/sql", digest="d", pin=True)
    await adapters.derive("both", "ties", {"sql": 0.5}, density=0.2, pin=False)
    assert (await adapters.pin("sql")).pinned
    await adapters.unpin("sql")
    assert {request.method for request in script.requests} == {"PUT"}
    sources = [{"name": "sql", "weight": 0.5}]
    assert script.bodies() == [
        {"path": "/a/sql", "digest": "d", "pin": True},
        {"derive": {"method": "ties", "sources": sources, "density": 0.2}, "pin": False},
        {"pin": True},
        {"pin": False},
    ]


async def test_tokens(script: Any, async_client: AsyncClient) -> None:
    script.answers({"count": 1, "max_model_len": 8, "tokens": [1]}, {"prompt": "Hi"})
    assert (await async_client.tokenize("Hi")).tokens == (1,)
    assert await async_client.detokenize([1]) == "Hi"


async def test_errors(script: Any, async_client: AsyncClient, error: Any) -> None:
    script.answers(error(404, "model_not_found"))
    with pytest.raises(NotFound):
        await async_client.models()
