"""Clients that do not keep their side of HTTP, against a listening server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from turret_server.http_protocol import BoundedProtocol

LATE_S = 0.3
ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers "/" with a word, "/long" with more than any buffer holds, and reads no body."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/long":
        for _ in range(1000):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
    await send({"type": "http.response.body", "body": b"word"})


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[uvicorn.Server]:
    monkeypatch.setattr(BoundedProtocol, "HEAD_S", LATE_S)
    monkeypatch.setattr(BoundedProtocol, "STALL_S", LATE_S)
    config = uvicorn.Config(
        app,
        port=0,
        http=BoundedProtocol,
        lifespan="off",
        log_level="error",
        h11_max_incomplete_event_size=4096,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server
    server.should_exit = True
    await serving


@pytest.fixture
async def connection(
    server: uvicorn.Server,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader, writer
    writer.close()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All until the server closes, which it does in good time."""
    async with asyncio.timeout(20 * LATE_S):
        return await reader.read()


def error_of(answer: bytes) -> tuple[int, str]:
    head, body = answer.split(b"\r\n\r\n", 1)
    return int(head.split()[1]), json.loads(body)["error"]["code"]


async def test_a_client_that_says_nothing_is_let_go(connection: Any) -> None:
    assert await rest(connection[0]) == b""


@pytest.mark.parametrize("before", [b"", ASK], ids=["first", "after a request"])
async def test_half_a_header(connection: Any, before: bytes) -> None:
    reader, writer = connection
    if before:
        writer.write(before)
        await reader.readuntil(b"word")
        await reader.readuntil(b"0\r\n\r\n")
    writer.write(ASK[:20])
    assert error_of(await rest(reader)) == (408, "request_timeout")


async def test_a_header_that_trickles(connection: Any) -> None:
    reader, writer = connection

    async def trickle() -> None:
        for byte in ASK * 10:
            writer.write(bytes([byte]))
            await asyncio.sleep(LATE_S / 5)

    trickling = asyncio.create_task(trickle())
    assert error_of(await rest(reader)) == (408, "request_timeout")
    trickling.cancel()


async def test_a_header_in_time_and_the_next_one(connection: Any) -> None:
    reader, writer = connection
    for _ in range(3):
        for part in (ASK[:10], ASK[10:]):
            writer.write(part)
            await asyncio.sleep(LATE_S / 3)
        assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_requests_that_come_together_are_answered_in_turn(connection: Any) -> None:
    reader, writer = connection
    writer.write(ASK + ASK + ASK[:9])
    for _ in range(2):
        assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert error_of(await rest(reader)) == (408, "request_timeout")


async def test_a_header_without_end(connection: Any) -> None:
    reader, writer = connection
    writer.write(b"GET / HTTP/1.1\r\nx-long: " + b"a" * 100_000)
    assert error_of(await rest(reader)) == (431, "header_too_large")


@pytest.mark.parametrize(
    "request_line", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/x", b"\r\n\r\n:\r\n\r\n"]
)
async def test_what_is_no_http(connection: Any, request_line: bytes) -> None:
    reader, writer = connection
    writer.write(request_line + b"\r\n\r\n")
    assert error_of(await rest(reader)) == (400, "invalid_value")


async def test_a_client_that_reads_nothing_is_cut_off(
    server: uvicorn.Server, connection: Any
) -> None:
    _, writer = connection
    writer.transport.pause_reading()
    writer.write(ASK.replace(b"/ ", b"/long ", 1))
    await asyncio.sleep(LATE_S / 3)
    assert server.server_state.connections
    async with asyncio.timeout(20 * LATE_S):
        while server.server_state.connections:
            await asyncio.sleep(0.01)


async def test_a_client_that_reads_slowly_gets_everything(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all it takes longer than a stall may; what counts is the time without a byte."""
    stall_s = 1.0
    monkeypatch.setattr(BoundedProtocol, "STALL_S", stall_s)
    reader, writer = connection
    writer.write(ASK.replace(b"/ ", b"/long ", 1))
    began, size, paused_at = asyncio.get_running_loop().time(), 0, 0
    while chunk := await asyncio.wait_for(reader.read(1 << 18), 20):
        size += len(chunk)
        if size - paused_at > 1 << 20:
            paused_at = size
            await asyncio.sleep(0.02)  # 62 times
        if chunk.endswith(b"0\r\n\r\n"):
            break
    assert size > 1000 << 16
    assert asyncio.get_running_loop().time() - began > stall_s


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_a_body_in_crumbs_is_refused(connection: Any) -> None:
    """Four megabytes of them took the event loop a minute."""
    reader, writer = connection
    writer.write(CHUNKED + b"1\r\na\r\n" * 5000)
    answer = await rest(reader)
    assert error_of(answer[answer.rindex(b"HTTP/1.1") :]) == (400, "invalid_value")


@pytest.mark.parametrize("chunk", [b"1\r\na\r\n" * 1000, (b"50\r\n" + b"a" * 80 + b"\r\n") * 3000])
async def test_small_chunks_are_read(connection: Any, chunk: bytes) -> None:
    reader, writer = connection
    writer.write(CHUNKED + chunk + b"0\r\n\r\n")
    assert (await reader.readuntil(b"word")).startswith(b"HTTP/1.1 200")
