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
    Open,
    Read,
    Ready,
    Refused,
    Reply,
    Request,
)
from turret_server.pipeline.frames import HEAD

log = logging.getLogger("turret.documents")

_START_TIMEOUT_S = 60.0  # imports, on a machine that is busy otherwise
_CHUNK_BYTES = 1 << 18  # written at once, so that a large document does not hold up the loop
_decode = msgspec.json.Decoder(Reply).decode

# A child decodes what strangers send: it sees nothing of the server's environment but this.
_ENVIRONMENT = (
    "PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
    "HOME", "LANG", "LC_ALL", "TMPDIR", "TESSDATA_PREFIX",
)  # fmt: skip


class Child:
    """A process that reads one page at a time. It starts when it is first asked.

    Attributes:
        document: of which it has the bytes; the pool's number.
    """

    def __init__(self, settings: PictureSettings) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._exchange: asyncio.Task[Reply] | None = None
        self.document = -1

    @property
    def pid(self) -> int | None:
        """Of the process, if it was started."""
        return None if self._process is None else self._process.pid

    @property
    def exchange(self) -> asyncio.Task[Reply] | None:
        """The question that it still works on, though the one who asked has gone."""
        return None if self._exchange is None or self._exchange.done() else self._exchange

    async def ask(self, request: Request, data: bytes = b"") -> Reply:
        """Return its answer. Cancelled, it leaves the child at work.

        Raises:
            BadRequest: the document or the page cannot be read.
            EngineUnavailable: the process does not start, or was ended with the pool.
        """
        self._exchange = asyncio.create_task(self._answer(request, data))
        self._exchange.add_done_callback(_retrieve)
        return await asyncio.shield(self._exchange)

    def kill(self) -> None:
        """End the process, and what it has started."""
        process, self._process = self._process, None
        self.document = -1
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
        process = self._process or await self._start()
        limit_s = self._settings.page_timeout_s
        why, fix = "", ""
        try:
            async with asyncio.timeout(limit_s):
                await _send(process, msgspec.json.encode(request))
                if isinstance(request, Open):
                    await _send(process, data)
                reply = await _receive(process)
        except TimeoutError:
            self.kill()
            why = f"it takes more than {limit_s:g} s"
            fix = "Send it smaller or simpler, or have the server's limit raised."
        except (OSError, EOFError, msgspec.DecodeError):
            if self._process is not process:
                raise EngineUnavailable(
                    "documents cannot be read", "the server is shutting down"
                ) from None
            self.kill()
            why = "the process that read it ended; the file may be damaged, or need too much memory"
            fix = "Save it anew with another program, or send it smaller."
        except asyncio.CancelledError:  # the loop is closing
            self.kill()
            raise
        else:
            if isinstance(reply, Refused):
                self._refuse(reply)
            return reply
        of = (
            f"page {request.number} of the document"
            if isinstance(request, Read)
            else "the document"
        )
        raise Unprocessable(f"{of} could not be read", why, fix)

    def _refuse(self, reply: Refused) -> NoReturn:
        if reply.details:
            log.warning("reading a document failed: %s", reply.details)
        if reply.spent:
            self.kill()
        raise reply.as_error()

    async def _start(self) -> asyncio.subprocess.Process:
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
                    return process
        except (OSError, EOFError, msgspec.DecodeError, TimeoutError):
            pass
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


def _retrieve(task: asyncio.Task[Reply]) -> None:
    """An error that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()
