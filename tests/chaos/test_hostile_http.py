"""What no client of good will sends: long, deep, slow and wrong, by the thousand."""

from __future__ import annotations

import asyncio
import json
import random
import string
import time

import httpx2
import psutil
import pytest
from tests.chaos.proxy import connect

pytestmark = pytest.mark.e2e

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
NUM_MALFORMED = 10_000


async def answer(url, *parts):
    """The status of what a raw request gets; 0 where the connection just ends."""
    reader, writer = await connect(url)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
    except ConnectionError:
        pass  # it has heard enough
    try:
        line = await asyncio.wait_for(reader.readline(), 10)
    except ConnectionError:
        line = b""
    writer.close()
    return int(line.split()[1]) if line else 0


def rss_mib(server):
    return psutil.Process(server.process.pid).memory_info().rss / 2**20


def a_long_header():
    return [HEAD, *[b"x-filler: " + b"a" * 65_000 + b"\r\n"] * 100]


def a_declared_gigabyte():
    return [HEAD + b"content-length: 1073741824\r\n\r\n", b"x" * 1000]


def an_undeclared_gigabyte():
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    return [HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 1024]


def whole(body):
    return [HEAD + b"content-length: %d\r\n\r\n" % len(body) + body]


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        (a_long_header(), {431, 0}),
        (a_declared_gigabyte(), {413}),
        (an_undeclared_gigabyte(), {413, 0}),
        (whole(b"[" * 10_000), {400}),
        (whole(b'{"prompt":' + b"[" * 10_000 + b"]" * 10_000 + b"}"), {400}),
        (whole(b'{"prompt": "x", "n": 1000000000}'), {400}),
        (whole(b'{"prompt": "x", "max_tokens": 1e400}'), {400}),
        (whole(b'{"prompt": "' + b"a" * 900_000 + b'"}'), {400}),
        (whole(b"\xff\xfe" * 1000), {400}),
        ([b"POST /v1/completions HTTP/1.1\r\n\x00: y\r\n\r\n"], {400}),
        ([b"\x16\x03\x01\x02\x00\x01" * 20 + b"\r\n\r\n"], {400}),
    ],
    ids=[
        "a header of megabytes", "a gigabyte, declared", "a gigabyte, in chunks", "open brackets",
        "depth", "n", "an infinite number", "a prompt of a megabyte", "no text", "no header", "TLS",
    ],
)  # fmt: skip
async def test_one_of_its_kind(server, http, parts, status, record_property):
    before, began = rss_mib(server), time.monotonic()
    assert await answer(server.url, *parts) in status
    record_property("seconds", round(time.monotonic() - began, 2))
    grown = rss_mib(server) - before
    record_property("memory MiB", round(grown, 1))
    assert grown < 20


def malformed(rng):
    """A body that is wrong, one way or several."""
    right = {"prompt": "One", "max_tokens": 1, "temperature": 0}
    junk = [None, True, -1, 10**30, 1e308, "", "\0", [], {}, [[]], {"a": {}}, "a" * 500, [1, "a"]]
    names = [
        "prompt",
        "max_tokens",
        "n",
        "top_p",
        "logit_bias",
        "stop",
        "adapters",
        "seed",
        "model",
    ]
    kind = rng.randrange(5)
    text = json.dumps(right).encode()
    if kind == 0:  # a wrong value, of which some are no harm
        return json.dumps(right | {rng.choice(names): rng.choice(junk)}).encode()
    if kind == 1:  # bytes changed
        noise = bytearray(text)
        for _ in range(rng.randrange(1, 6)):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        return bytes(noise)
    if kind == 2:  # cut off
        return text[: rng.randrange(len(text))]
    if kind == 3:  # unknown fields
        name = "".join(rng.choices(string.printable, k=rng.randrange(1, 40)))
        return json.dumps(right | {name: rng.choice(junk)}).encode()
    return rng.randbytes(rng.randrange(200))


async def test_ten_thousand_malformed_requests(
    server, http, completion, open_stream, record_property
):
    """None is the server's fault, none costs memory, and whoever streams goes on streaming."""
    rng = random.Random(0)
    headers = {"content-type": "application/json"}
    statuses: dict[int, int] = {}
    streamed = 0
    limits = httpx2.Limits(max_connections=16)

    async with (
        open_stream(completion(max_tokens=8000, timeout_s=600)) as events,
        httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client,
    ):
        await anext(events)

        async def watch():
            nonlocal streamed
            async for _ in events:
                streamed += 1

        async def send(count):
            for _ in range(count):
                response = await client.post(
                    "/v1/completions", content=malformed(rng), headers=headers
                )
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                if response.status_code >= 400:
                    assert response.json()["error"]["what"]

        watching = asyncio.create_task(watch())
        await send(500)
        before = rss_mib(server)
        await asyncio.gather(*(send((NUM_MALFORMED - 500) // 10) for _ in range(10)))
        grown = rss_mib(server) - before
        watching.cancel()
    for name, value in (("statuses", statuses), ("memory MiB", round(grown, 1))):
        record_property(name, value)
    assert sum(statuses.values()) == NUM_MALFORMED
    assert statuses.keys() <= {200, 400, 404, 422, 429}, statuses
    assert statuses[400] > NUM_MALFORMED / 3
    assert grown < 20
    assert streamed > 50
