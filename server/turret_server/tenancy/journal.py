"""An append-only file of what was used, on the disk before anybody hears of it.

A line is a checksum, a blank and a JSON object. A thread writes whatever has been asked for since
it last looked, and then syncs once, so that a hundred requests at once wait for one disk. A torn or
damaged line is skipped when the file is read.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import queue
import threading
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

log = logging.getLogger(__name__)

SUFFIX = ".journal"
INTERRUPTED = "interrupted"
_ENCODE = msgspec.json.Encoder().encode


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened to a request.

    Attributes:
        request: its id, drawn by the server.
        event: "begin" when it is accepted, "end" when it is over, for whatever reason; "probe" is
            of no request: does the disk take it?
        at: when it was accepted, Unix seconds.
        tenant: whose it is.
        key: the prefix of the key.
        model: the name of bounded variety that metrics show.
        prompt_tokens: of all its prompts.
        cached_tokens: of them found in the prefix cache.
        completion_tokens: of all its answers.
        member_tokens: prompts and answers of a fusion's members beside the request's own model.
        pages: of documents that were read for it.
        status: how it ended: "done", "error" or "abort"; INTERRUPTED if its process did.
    """

    request: str
    event: str
    at: int
    tenant: str
    key: str
    model: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    member_tokens: int = 0
    pages: int = 0
    status: str = ""


_DECODE = msgspec.json.Decoder(Entry).decode


class Journal:
    """The journal of one process, in a file of its own.

    Args:
        folder: where; made if it is missing.

    Attributes:
        name: of the file, without its suffix; unique.
        lines: how many are on the disk.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = uuid.uuid4().hex
        self.path = folder / f"{self.name}{SUFFIX}"
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - closed by `close`
        # Others, that look for journals of processes that died, see that this one lives.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.lines = 0
        self._asked: queue.SimpleQueue[tuple[list[bytes], _Waiter] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="usage-journal", daemon=True)
        self._thread.start()

    async def append(self, *entries: Entry) -> None:
        """Return when the entries are on the disk.

        Raises:
            OSError: they are not, and nothing of them is.
        """
        lines = list(map(_line, entries))  # here: what cannot be written must not end the thread
        waiter = _Waiter(asyncio.get_running_loop())
        self._asked.put((lines, waiter))
        await waiter.future

    def close(self) -> None:
        """Write what was asked for, and end."""
        self._asked.put(None)
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        while True:
            batch = [self._asked.get()]
            while not self._asked.empty():
                batch.append(self._asked.get())
            work = [item for item in batch if item is not None]
            error = self._write([line for lines, _ in work for line in lines])
            for _, waiter in work:
                waiter.done(error)
            if None in batch:
                return

    def _write(self, lines: list[bytes]) -> OSError | None:
        data = b"".join(lines)
        end = self._file.tell()
        try:
            done = 0
            while done < len(data):
                done += self._file.write(data[done:]) or 0
            os.fdatasync(self._file.fileno())
        except OSError as error:  # the disk is full, say
            log.error("usage is not recorded: %s", error)
            try:
                os.truncate(self._file.fileno(), end)
                self._file.seek(end)
            except OSError:
                log.exception("the journal cannot be cut back; its last line may be torn")
            return error
        self.lines += len(lines)
        return None


class _Waiter:
    """A future of a loop, answered from another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self.future = loop, loop.create_future()

    def done(self, error: OSError | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, error)
        except RuntimeError:
            log.debug("a loop has ended before its usage was written")

    def _settle(self, error: OSError | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


def read_journal(file: BinaryIO) -> Iterator[Entry | None]:
    """The lines of a journal, None for each that is damaged; a torn last one is left out."""
    for line in file:
        if not line.endswith(b"\n"):
            return
        checksum, _, text = line[:-1].partition(b" ")
        try:
            whole = int(checksum, 16) == zlib.crc32(text)
            yield _DECODE(text) if whole else None
        except (ValueError, msgspec.MsgspecError):
            yield None


def _line(entry: Entry) -> bytes:
    text = _ENCODE(entry)
    return b"%08x %s\n" % (zlib.crc32(text), text)
