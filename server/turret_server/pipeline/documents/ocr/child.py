"""One child process, as the pool sees it: ask it, and end it when it does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from typing import NoReturn

import msgspec

from turret_server.errors import EngineUnavailable, Unprocessable
from turret_server.pipeline.documents.ocr.settings import PictureSettings
from turret_server.pipeline.documents.ocr.wire import (
    Done,
    Open,
    Opened,
    Read,
    Ready,
    Refused,
    Reply,
    Request,
)
from turret_server.pipeline.documents.page import Page
from turret_server.pipeline.frames import HEAD

log = logging.getLogger("turret.documents")

_START_TIMEOUT_S = 60.0  # imports, on a machine that is busy otherwise
_CHUNK_BYTES = 1 << 18  # written at once, so that a large document does not hold up the loop
_BROKEN = (OSError, EOFError, msgspec.DecodeError)  # what a child leaves behind that ended
_decode = msgspec.json.Decoder(Reply).decode

# A child decodes what strangers send: it sees nothing of the server's environment but this.
_ENVIRONMENT = (
    "PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
    "HOME", "LANG", "LC_ALL", "TMPDIR", "TESSDATA_PREFIX",
)  # fmt: skip


class Child:
    """A process that reads one page at a time. It starts when a document is first opened."""

    def __init__(self, settings: PictureSettings) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._exchange: asyncio.Task[Reply] | None = None
        self._document = -1

    @property
    def pid(self) -> int | None:
        """Of the process, if it was started."""
        return None if self._process is None else self._process.pid

    @property
    def document(self) -> int:
        """Number of the document that it has open; -1 for none."""
        return self._document if self._runs() else -1

    @property
    def exchange(self) -> asyncio.Task[Reply] | None:
        """The question that it still works on, though the one who asked has gone."""
        return None if self._exchange is None or self._exchange.done() else self._exchange

    async def open(self, request: Open, data: bytes, document: int) -> Opened:
        """Take a document up in place of the one before. Cancelled, it leaves the child at work.

        Raises:
            BadRequest: the document cannot be read.
            EngineUnavailable: the process does not start, or was ended with the pool.
        """
        self._document = -1
        reply = await self._ask(request, data)
        assert isinstance(reply, Opened)
        self._document = document
        return reply

    async def read(self, number: int) -> Page:
        """Return a page of the document. Cancelled, it leaves the child at work.

        Raises:
            BadRequest: the page cannot be read.
            EngineUnavailable: the process was ended with the pool.
        """
        reply = await self._ask(Read(number))
        assert isinstance(reply, Done)
        return reply.page

    async def _ask(self, request: Request, data: bytes = b"") -> Reply:
        self._exchange = asyncio.create_task(self._answer(request, data))
        self._exchange.add_done_callback(_retrieve)
        return await asyncio.shield(self._exchange)

    def kill(self) -> None:
        """End the process, and what it has started."""
        process, self._process = self._process, None
        self._document = -1
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End it and wait until it has gone."""
        process = self._process
        self.kill()
        if process is not None:
            await process.wait()

    async def _answer(self, request: Request, data: bytes) -> Reply:
        started = isinstance(request, Open) and not self._runs()
        if started:
            self.kill()  # if it ended while it had nothing to do
            await self._start()
        process = self._process
        assert process is not None
        limit_s = self._settings.page_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await _send(process, msgspec.json.encode(request))
                if isinstance(request, Open):
                    await _send(process, data)
                reply = await _receive(process)
        except TimeoutError:
            self.kill()
            raise _unreadable(
                request,
                f"it takes more than {limit_s:g} s",
                "Send it smaller or simpler, or have the server's limit raised.",
            ) from None
        except _BROKEN:
            self._check_open(process)
            self.kill()
            if isinstance(request, Open) and not started:
                return await self._answer(request, data)  # it may have ended before it saw this
            raise _unreadable(
                request,
                "the process that read it ended; the file may be damaged, or need too much memory",
                "Save it anew with another program, or send it smaller.",
            ) from None
        except asyncio.CancelledError:  # the loop is closing
            self.kill()
            raise
        if isinstance(reply, Refused):
            self._refuse(reply)
        return reply

    def _refuse(self, reply: Refused) -> NoReturn:
        if reply.details:
            log.warning("reading a document failed: %s", reply.details)
        if reply.spent:
            self.kill()
        raise reply.as_error()

    def _check_open(self, process: asyncio.subprocess.Process) -> None:
        if self._process is not process:
            raise EngineUnavailable("documents cannot be read", "the server is shutting down")

    def _runs(self) -> bool:
        process = self._process
        if process is None or process.returncode is not None:
            return False
        assert process.stdout is not None
        return not process.stdout.at_eof()

    async def _start(self) -> None:
        # -P: the working directory may hold anything, and must not be imported from.
        # Own session: Ctrl-C is for the server, and killing reaches what the child started.
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "turret_server.pipeline.documents.ocr.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={
                **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await _send(process, msgspec.json.encode(self._settings))
                if isinstance(await _receive(process), Ready):
                    return
        except (*_BROKEN, TimeoutError):
            self._check_open(process)
        except asyncio.CancelledError:
            self.kill()
            raise
        self.kill()
        raise EngineUnavailable(
            "documents cannot be read now",
            "the process that reads them does not start",
            "See the server's log.",
        )


async def _send(process: asyncio.subprocess.Process, payload: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(HEAD.pack(len(payload)))
    view = memoryview(payload)
    for start in range(0, len(payload), _CHUNK_BYTES):
        process.stdin.write(view[start : start + _CHUNK_BYTES])
        await process.stdin.drain()


async def _receive(process: asyncio.subprocess.Process) -> Reply:
    assert process.stdout is not None
    (length,) = HEAD.unpack(await process.stdout.readexactly(HEAD.size))
    return _decode(await process.stdout.readexactly(length))


def _unreadable(request: Request, why: str, fix: str) -> Unprocessable:
    of = f"page {request.number} of the document" if isinstance(request, Read) else "the document"
    return Unprocessable(f"{of} could not be read", why, fix)


def _retrieve(task: asyncio.Task[Reply]) -> None:
    """An error that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()
