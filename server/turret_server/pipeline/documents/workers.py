"""The processes that read documents, as the event loop sees them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from turret_server.errors import EngineUnavailable, Overloaded, Unprocessable
from turret_server.pipeline.documents.layout import LayoutOptions, PageText
from turret_server.pipeline.documents.page import Page
from turret_server.pipeline.documents.readers import ReadLimits
from turret_server.pipeline.documents.turns import Turns
from turret_server.pipeline.documents.worker_wire import (
    LayOut,
    Pages,
    Problem,
    Read,
    Texts,
    decode_reply,
    encode,
)
from turret_server.pipeline.frames import HEAD

_PIECE_BYTES = 1 << 18  # written at once: more would hold up the loop
_MODULE = "turret_server.pipeline.documents.worker"


class DocumentWorkers:
    """Reads OCR results and lays pages out, beside the event loop.

    Processes start when they are first needed. One that takes too long, or whose result nobody
    waits for any more, is ended.

    Args:
        count: processes at once; further jobs wait.
        timeout_s: longest time for one job, once it is begun.
        max_waiting: jobs that may wait.
        limits: of what is read.
        max_chars: of the text of all pages that are laid out at once.
    """

    def __init__(
        self, count: int, timeout_s: float, max_waiting: int, limits: ReadLimits, max_chars: int
    ) -> None:
        self._turns = Turns(count)
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._limits = limits
        self._max_chars = max_chars
        self._idle: list[Process] = []

    async def read(self, data: bytes, format: str | None = None, owner: str = "") -> list[Page]:
        """Read an OCR result; owners take turns.

        Raises:
            BadRequest, Unprocessable, PayloadTooLarge: see `readers.read`, or it takes too long.
            Overloaded: too many jobs wait.
            EngineUnavailable: no process starts.
        """
        reply = await self._ask(encode(Read(data, format, self._limits)), owner)
        assert isinstance(reply, Pages)
        return reply.pages

    async def lay_out(
        self, pages: Sequence[Page], options: LayoutOptions, owner: str = ""
    ) -> list[PageText]:
        """Lay pages out; owners take turns.

        Raises:
            Unprocessable: it takes too long.
            PayloadTooLarge: the text is too long.
            Overloaded, EngineUnavailable: as for `read`.
        """
        reply = await self._ask(encode(LayOut(list(pages), options, self._max_chars)), owner)
        assert isinstance(reply, Texts)
        return reply.texts

    async def close(self) -> None:
        """End the processes."""
        while self._idle:
            await _end(self._idle.pop())

    async def _ask(self, job: bytes, owner: str) -> Pages | Texts:
        async with self._turn(owner):
            worker = await self._worker()
            try:
                async with asyncio.timeout(self._timeout_s):
                    reply = decode_reply(await _exchange(worker, job))
            except TimeoutError as error:
                await _end(worker)
                raise Unprocessable(
                    "the document cannot be read",
                    f"it takes more than {self._timeout_s:g} s",
                    "Send it in parts.",
                ) from error
            except (OSError, EOFError) as error:
                await _end(worker)
                raise Unprocessable(
                    "the document cannot be read",
                    "the process that read it has ended",
                    "Send it in parts, or send the request again.",
                ) from error
            except BaseException:  # cancelled: half a reply must not become the next one's
                await _end(worker)
                raise
            self._idle.append(worker)
        if isinstance(reply, Problem):
            raise reply.error()
        return reply

    async def _worker(self) -> Process:
        try:
            return self._idle.pop() if self._idle else await _start()
        except OSError as error:
            raise EngineUnavailable(
                "documents cannot be read now",
                f"the process that reads them does not start ({error.strerror or error})",
                "Try again.",
            ) from error

    @asynccontextmanager
    async def _turn(self, owner: str) -> AsyncIterator[None]:
        waiting = self._turns.waiting()
        room = self._max_waiting - waiting
        # One tenant alone fills half of the queue, and whoever comes then finds room.
        if self._turns.full and (room <= 0 or (owner and self._turns.waiting(owner) >= room)):
            raise Overloaded(
                "the server is overloaded",
                f"{waiting} documents wait to be read; {self._max_waiting} may",
                "Try again later.",
            )
        await self._turns.acquire(owner)
        try:
            yield
        finally:
            self._turns.release()


async def _start() -> Process:
    # -P: the working directory may hold anything, and must not be imported from.
    # Own session: Ctrl-C is for the server, which closes the pipe when it ends.
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        _MODULE,
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )


async def _exchange(worker: Process, job: bytes) -> bytes:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(HEAD.pack(len(job)))
    view = memoryview(job)
    for at in range(0, len(job), _PIECE_BYTES):
        worker.stdin.write(view[at : at + _PIECE_BYTES])
        await worker.stdin.drain()
    (length,) = HEAD.unpack(await worker.stdout.readexactly(HEAD.size))
    return await worker.stdout.readexactly(length)


async def _end(worker: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.kill()
    await worker.wait()
