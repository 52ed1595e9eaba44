"""A TCP proxy that does to bytes what networks do."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Fault = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


async def whole(data: bytes, to: asyncio.StreamWriter) -> None:
    """Pass everything on as it comes."""
    to.write(data)
    await to.drain()


async def byte_by_byte(data: bytes, to: asyncio.StreamWriter) -> None:
    """Every byte in a packet of its own."""
    for i in range(len(data)):
        to.write(data[i : i + 1])
        await to.drain()
        await asyncio.sleep(0)


def stalls(after: int, seconds: float) -> Fault:
    """Silence, once so many bytes have passed."""
    passed = 0

    async def fault(data: bytes, to: asyncio.StreamWriter) -> None:
        nonlocal passed
        if passed < after <= passed + len(data):
            await asyncio.sleep(seconds)
        passed += len(data)
        await whole(data, to)

    return fault


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a crash does: RST, with nothing flushed."""
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    writer.transport.abort()


def resets(after: int) -> Fault:
    """RST, once so many bytes have passed."""
    passed = 0

    async def fault(data: bytes, to: asyncio.StreamWriter) -> None:
        nonlocal passed
        passed += len(data)
        await whole(data, to)
        if passed >= after:
            reset(to)
            raise ConnectionResetError

    return fault


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare connection to a server."""
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


@asynccontextmanager
async def proxy(url: str, *, up: Fault = whole, down: Fault = whole) -> AsyncIterator[str]:
    """The URL of a proxy before a server.

    Args:
        url: of the server.
        up: what happens to bytes on their way to it.
        down: what happens to bytes on their way from it.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def pump(
        source: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        fault: Fault,
        back: asyncio.StreamWriter,
    ) -> None:
        try:
            while data := await source.read(1 << 16):
                await fault(data, to)
            to.write_eof()
        except OSError:
            reset(back)
            to.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await connect(url)
        both = (
            asyncio.create_task(pump(reader, server_writer, up, writer)),
            asyncio.create_task(pump(server_reader, writer, down, server_writer)),
        )
        tasks.update(both)
        await asyncio.gather(*both, return_exceptions=True)
        for end in (writer, server_writer):
            end.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
