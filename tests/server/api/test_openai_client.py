"""The `openai` package and a real socket: what the app sends is what clients understand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import openai
import pydantic
import pytest
import uvicorn
from fastapi import FastAPI

from turret_server.errors import EngineUnavailable

HELLO = [{"role": "user", "content": "Hi"}]


@contextlib.asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """Serve an app on a free port of the loopback."""
    config = uvicorn.Config(app, port=0, http="h11", log_level="error")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def url(app):
    async with listening(app) as url:
        yield url


@pytest.fixture
async def oai(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2) as client:
        yield client


async def test_chat(oai, engine):
    engine.text("Hello there.")
    answer = await oai.chat.completions.create(model="demo", messages=HELLO)
    assert answer.choices[0].message.content == "Hello there."
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer._request_id


async def test_streamed_chat_arrives_token_by_token(oai, engine):
    engine.text("Hello there, you.")
    gate = engine.gate = asyncio.Event()
    stream = await asyncio.wait_for(
        _opened(
            oai.chat.completions.create(
                model="demo",
                messages=HELLO,
                stream=True,
                stream_options={"include_usage": True},
            ),
            gate,
        ),
        5,
    )
    texts, usage = [], None
    async for chunk in stream:
        usage = chunk.usage or usage
        texts += [choice.delta.content for choice in chunk.choices]
    assert texts == ["Hello", " there", ",", " you", ".", ""]
    assert usage.completion_tokens == 6


async def _opened(request, gate):
    asyncio.get_running_loop().call_later(0.05, gate.set)
    return await request


async def test_the_stream_helper(oai, engine):
    engine.text("Hello there.")
    async with oai.chat.completions.stream(model="demo", messages=HELLO, n=2) as stream:
        final = await stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["Hello there."] * 2


async def test_completions(oai, engine):
    engine.text(" world", end=False)
    answer = await oai.completions.create(model="demo", prompt="Hello", logprobs=2, echo=True)
    assert answer.choices[0].text == "Hello world"
    assert answer.choices[0].logprobs.token_logprobs[0] is None


async def test_parsed_output_and_tools(oai, engine):
    class City(pydantic.BaseModel):
        name: str

    engine.text('{"name": "Zürich"}')
    answer = await oai.chat.completions.parse(model="demo", messages=HELLO, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Zürich")
    engine.text('<tool_call>\n{"name": "City", "arguments": {"name": "Bern"}}\n</tool_call>')
    tool = openai.pydantic_function_tool(City)
    async with oai.chat.completions.stream(model="demo", messages=HELLO, tools=[tool]) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == City(name="Bern")


async def test_errors_become_its_exceptions(oai, engine):
    with pytest.raises(openai.BadRequestError) as caught:
        await oai.chat.completions.create(model="demo", messages=HELLO, temperature=9)
    assert caught.value.param == "temperature"
    assert caught.value.body["fix"]
    with pytest.raises(openai.NotFoundError):
        await oai.chat.completions.create(model="nope", messages=HELLO)
    engine.text("one two three")
    engine.fail_after, engine.failure = 2, EngineUnavailable("the engine died")
    stream = await oai.chat.completions.create(model="demo", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="the engine died"):
        async for _ in stream:
            pass


async def test_it_recovers_from_overload_unaided(oai, app, engine):
    engine.text("Hello")
    admission = app.state.service.admission
    admission.waiting = 10**6
    asyncio.get_running_loop().call_later(0.5, setattr, admission, "waiting", 0)
    answer = await oai.chat.completions.create(model="demo", messages=HELLO)
    assert answer.choices[0].message.content == "Hello"


async def test_models(oai):
    models = await oai.models.list()
    assert [model.id for model in models.data] == ["demo", "smollm2"]
    assert (await oai.models.retrieve("demo")).id == "demo"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_closed_socket_cancels(url, engine, stream):
    engine.delay_s = 0.002
    host, port = url.removeprefix("http://").split(":")
    body = b'{"prompt": "Hi", "max_tokens": 2000, "stream": %s}' % (b"false", b"true")[stream]
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    if stream:
        await reader.readuntil(b"data: ")
    while not engine.requests:
        await asyncio.sleep(0.002)
    writer.close()
    async with asyncio.timeout(2):
        while not engine.cancelled:
            await asyncio.sleep(0.005)
    assert engine.cancelled == [engine.requests[0].id]


async def test_the_response_begins_with_the_first_token(url, engine):
    """Until then a failure can still be a status."""
    engine.text("Hello")
    engine.gate = asyncio.Event()
    host, port = url.removeprefix("http://").split(":")
    body = b'{"prompt": "Hi", "stream": true}'
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    engine.gate.set()
    assert (await asyncio.wait_for(reader.readline(), 2)).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_large_body_is_refused_before_it_is_read(make_app):
    async with listening(make_app(max_body_bytes=1000)) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 1000000000\r\n\r\n{"
        )
        assert (await asyncio.wait_for(reader.readline(), 2)).startswith(b"HTTP/1.1 413")
        writer.close()
