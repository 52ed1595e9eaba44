"""Networks that cut, stall and reset: what arrives is in order, and what does not leaves nothing.

That nothing stays held is seen at the end of every test: see the fixture `http`.
"""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest
from tests.chaos.proxy import byte_by_byte, connect, proxy, reset, resets, stalls

pytestmark = pytest.mark.e2e

ASK = {"prompt": "One, two,", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


async def streamed(url, body):
    """The text of a stream, its finish reasons, and its last event."""
    text, reasons, last = "", [], ""
    async with (
        httpx2.AsyncClient(base_url=url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response,
    ):
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                last = line[6:]
            if line.startswith("data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                text += choice["text"]
                reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    return text, reasons, last


@pytest.mark.parametrize(
    "faults",
    [
        {"up": byte_by_byte},
        {"down": byte_by_byte},
        {"up": stalls(40, 2.0)},
        {"down": stalls(600, 2.0)},
    ],
    ids=["request in bytes", "answer in bytes", "request stalls", "answer stalls"],
)
async def test_a_slow_network_changes_no_answer(server, http, faults):
    expected = await streamed(server.url, ASK)
    assert expected[1:] == (["length"], "[DONE]")
    async with proxy(server.url, **faults) as url:
        assert await streamed(url, ASK) == expected


async def test_a_reset_in_the_middle_of_a_stream(server, http, completion):
    async with proxy(server.url, down=resets(2000)) as url:
        with pytest.raises(httpx2.RequestError):
            await streamed(url, completion())


async def test_a_reset_in_the_middle_of_a_request(server, http):
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    async with proxy(server.url, up=resets(120)) as url:
        _, writer = await connect(url)
        writer.write(head + b"content-length: 5000\r\n\r\n" + b'{"prompt": "' + bytes(100))
        await asyncio.sleep(0.2)
        writer.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("end", ["half-close", "reset"])
async def test_a_client_that_is_gone_frees_what_it_held(
    server, http, completion, wait_until, stream, end
):
    """A half-closed connection counts as gone: no client of ours sends and then hangs up."""
    body = json.dumps(completion(stream=stream)).encode()
    _, writer = await connect(server.url)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    running = "turret_num_requests_running"
    await asyncio.to_thread(wait_until, lambda: server.metrics()[running] == 1, 10, "it runs")
    if end == "reset":
        reset(writer)
    else:
        writer.write_eof()
    await asyncio.to_thread(wait_until, lambda: server.metrics()[running] == 0, 2, "it ends")
    writer.close()
