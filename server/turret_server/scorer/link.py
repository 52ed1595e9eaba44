"""The server's side of a scorer's process: it is started, asked, and started again if it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator, Sequence

import msgspec

from turret_server.engine.lifetime import environment_of_child
from turret_server.errors import EngineUnavailable, StartupError
from turret_server.pipeline.frames import HEAD
from turret_server.scorer.messages import (
    Refused,
    Rows,
    ScorerReady,
    ScorerSettings,
    Scores,
    decode_reply,
    encode,
)
from turret_server.scorer.text import Row

log = logging.getLogger("turret.scorer")

# -P: the working directory may hold anything, and must not be imported from.
_COMMAND = (sys.executable, "-P", "-m", "turret_server.scorer.process")
_PATIENCE_S = 600.0  # for one batch, or to load again: it is done well before, or never
_BROKEN = (OSError, EOFError, TimeoutError, msgspec.DecodeError)


class ScorerLink:
    """One scorer's process.

    Inputs go to it in batches of bounded size, and whoever waits gets the next turn: a thousand
    documents hold up four candidates for one batch.

    Args:
        name: of the scorer, in messages.
        settings: of its process.
    """

    def __init__(self, name: str, settings: ScorerSettings) -> None:
        self._name, self._settings = name, settings
        self._process: Process | None = None
        self._ready: ScorerReady | None = None
        self._turn = asyncio.Lock()
        self._closed = False

    async def start(self) -> ScorerReady:
        """Start the process and load the model.

        Raises:
            StartupError: it cannot be served.
        """
        # Own session: Ctrl-C is for the server, which ends its children itself.
        self._process = process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
            env=environment_of_child(),
        )
        try:
            reply = await _exchange(process, self._settings)
        except _BROKEN as error:
            await self._end()
            raise StartupError(
                f"the scorer {self._name!r} cannot be served",
                "its process has ended while it loaded",
                "See the log; it may need more memory than there is.",
            ) from error
        if not isinstance(reply, ScorerReady):
            assert isinstance(reply, Refused)
            await self._end()
            what = f"the scorer {self._name!r} cannot be served"
            raise StartupError(what, f"{reply.what}: {reply.why}", reply.fix)
        self._ready = reply
        return reply

    async def score(self, rows: Sequence[Row]) -> list[float]:
        """The score of each row.

        Raises:
            EngineUnavailable: the process has ended.
        """
        assert self._ready is not None
        scores = [0.0] * len(rows)
        for places in _batches(rows, self._ready.batch_tokens):
            chosen = [rows[place] for place in places]
            message = Rows([row.ids for row in chosen], [row.types for row in chosen])
            for place, value in zip(places, await self._ask(message), strict=True):
                scores[place] = value
        return scores

    async def close(self) -> None:
        """End the process."""
        self._closed = True
        await self._end()

    async def _ask(self, rows: Rows) -> list[float]:
        await self._turn.acquire()
        task = asyncio.create_task(self._answer(rows))
        task.add_done_callback(self._answered)
        # One who leaves does not leave half an answer in the pipe.
        return await asyncio.shield(task)

    def _answered(self, task: asyncio.Task[list[float]]) -> None:
        self._turn.release()
        if not task.cancelled():
            task.exception()  # of which nobody may want to know any more

    async def _answer(self, rows: Rows) -> list[float]:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                process = await self._running()
                reply = await _exchange(process, rows)
        except (*_BROKEN, StartupError) as error:
            log.warning("the scorer %r has failed: %r", self._name, error)
            await self._end()
            raise EngineUnavailable(
                f"the scorer {self._name!r} cannot answer",
                "its process has ended",
                "Send the request again.",
            ) from error
        except asyncio.CancelledError:  # the loop is closing
            await self._end()
            raise
        assert isinstance(reply, Scores)
        return reply.values

    async def _running(self) -> Process:
        process = self._process
        if process is not None and process.returncode is None:
            return process
        if self._closed:
            raise EOFError
        await self.start()
        assert self._process is not None
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[int]]:
    """Places of rows that are run together: those of like length, for they are padded."""
    batch: list[int] = []
    for place in sorted(range(len(rows)), key=lambda at: -len(rows[at].ids)):
        if batch and (len(batch) + 1) * len(rows[batch[0]].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


async def _exchange(
    process: Process, message: ScorerSettings | Rows
) -> ScorerReady | Refused | Scores:
    assert process.stdin is not None
    assert process.stdout is not None
    data = encode(message)
    process.stdin.write(HEAD.pack(len(data)) + data)
    await process.stdin.drain()
    (length,) = HEAD.unpack(await process.stdout.readexactly(HEAD.size))
    return decode_reply(await process.stdout.readexactly(length))
