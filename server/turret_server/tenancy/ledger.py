"""The ledger: every accepted request counts exactly once, whatever dies meanwhile.

A request is in the journal before its first byte goes out, and again when it ends. A task carries
what has ended into the database, where the request's id is the key: what arrives twice counts once.
When the process dies, the next one carries over what its journals hold, and counts what began and
never ended as interrupted, with its prompt.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from sqlalchemy import insert, select

from turret_server.errors import EngineUnavailable, TurretError
from turret_server.tenancy import schema
from turret_server.tenancy.database import Database
from turret_server.tenancy.journal import INTERRUPTED, SUFFIX, Entry, Journal, read_journal

log = logging.getLogger(__name__)

_MAX_LINES = 200_000  # then a new journal begins
_ROWS_AT_ONCE = 500
_PROBE = Entry(request="", event="probe", at=0, tenant="", key="", model="")


class UsageNotRecorded(EngineUnavailable):
    """The disk takes no more: a request that could not be accounted for is not served."""

    code = "usage_not_recorded"


class Ledger:
    """Writes usage down, and carries it into the database.

    Args:
        database: where usage ends up.
        folder: of the journals.
        interval_s: how often it is carried over.

    Attributes:
        folder: as given.
        journal_errors: requests whose beginning or end the disk did not take.
        database_errors: attempts to carry over that failed.
    """

    def __init__(self, database: Database, folder: Path, interval_s: float = 2.0) -> None:
        self._database, self.folder, self._interval_s = database, folder, interval_s
        self.journal_errors = self.database_errors = 0
        self._journal = Journal(folder)
        self._open: dict[str, Entry] = {}
        self._ended: list[Entry] = []  # not in the database yet
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._problem: str | None = None  # of the disk, when it was last written

    @property
    def waiting(self) -> int:
        """Requests that have ended and are not in the database yet."""
        return len(self._ended)

    def start(self) -> None:
        """Begin to carry over, first what processes that died have left."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def begin(self, entry: Entry) -> None:
        """A request is accepted; returns when that is on the disk.

        Raises:
            UsageNotRecorded: it cannot be written.
        """
        self._open[entry.request] = entry  # before it is written, for `_turn_over`
        try:
            await self._append(entry)
        except OSError as error:
            del self._open[entry.request]
            self.journal_errors += 1
            raise UsageNotRecorded(
                "the request was not accepted",
                f"its usage cannot be recorded ({error.strerror})",
                "Try again later; the operator must make room on the disk.",
            ) from error
        except BaseException:  # cancelled, or whatever else: it was not accepted
            del self._open[entry.request]
            raise

    async def end(self, entry: Entry) -> None:
        """It is over. What the disk does not take counts as long as the process lives."""
        try:
            await self._append(entry)
        except OSError as error:
            self.journal_errors += 1
            log.error("the end of request %s is not in the journal: %s", entry.request, error)
        self._ended.append(entry)
        self._open.pop(entry.request, None)

    def end_soon(self, entry: Entry) -> None:
        """The same, for callers that must not wait: their client may be gone."""
        task = asyncio.get_running_loop().create_task(self.end(entry))
        self._ending.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._ending.discard)

    async def problem(self) -> str | None:
        """Why requests are refused; None if they are not, or would not be any more.

        Where the disk took nothing it is asked again, because refused requests write nothing.
        """
        if self._problem is not None:
            with suppress(OSError):
                await self._append(_PROBE)
        return self._problem

    async def _append(self, entry: Entry) -> None:
        try:
            await self._journal.append(entry)
        except OSError as error:
            self._problem = f"usage cannot be recorded ({error.strerror})"
            raise
        self._problem = None

    async def close(self) -> None:
        """Carry over what is left; what still runs is for the next process to count."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._ending)
        is_carried = await self._carry()
        self._journal.close()
        if is_carried and not self._open:
            self._journal.path.unlink(missing_ok=True)

    async def _run(self) -> None:
        try:
            await asyncio.to_thread(recover, self._database, self.folder)
        except (TurretError, OSError) as error:
            log.warning("journals of earlier processes wait for the next start: %s", error)
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                if await self._carry() and self._journal.lines > _MAX_LINES:
                    await self._turn_over()
            except Exception:  # whatever it was: nobody else carries over, and the next try may do
                self.database_errors += 1
                log.exception("usage could not be carried over")

    async def _carry(self) -> bool:
        """Move what has ended; what the database does not take now is kept for the next time."""
        ended, self._ended = self._ended, []
        try:
            if ended:
                await asyncio.to_thread(post, self._database, ended)
        except TurretError as error:
            self.database_errors += 1
            log.warning("usage of %d requests waits for the database: %s", len(ended), error)
            self._ended = ended + self._ended
            return False
        except BaseException:  # cancelled: what the thread does now may still fail
            self._ended = ended + self._ended
            raise
        return True

    async def _turn_over(self) -> None:
        """Begin a new journal with what is open; the old one is in the database."""
        old, known = self._journal, dict(self._open)
        try:
            new = Journal(self.folder)
        except OSError as error:
            log.warning("the journal goes on growing: %s", error)
            return
        try:
            await new.append(*known.values())
            while late := {name: e for name, e in self._open.items() if name not in known}:
                known |= late
                await new.append(*late.values())
        except OSError as error:
            log.warning("the journal goes on growing: %s", error)
            new.close()
            new.path.unlink(missing_ok=True)
            return
        self._journal = new
        with suppress(OSError):  # told where it was asked for
            await old.append()  # ends are on their way to it, and are carried over with the others
        if await self._carry():
            await asyncio.to_thread(old.close)
            old.path.unlink(missing_ok=True)


def post(database: Database, entries: Iterable[Entry]) -> None:
    """Put requests into the ledger; those that are there already stay as they are.

    Raises:
        DatabaseDown: nothing has changed.
    """
    table, rows = schema.requests, {entry.request: _row(entry) for entry in entries}
    with database.begin() as connection:
        every = list(rows)
        for first in range(0, len(every), _ROWS_AT_ONCE):
            ids = every[first : first + _ROWS_AT_ONCE]
            known = set(connection.scalars(select(table.c.id).where(table.c.id.in_(ids))))
            if new := [rows[request] for request in ids if request not in known]:
                connection.execute(insert(table), new)


def recover(database: Database, folder: Path) -> int:
    """Carry over the journals of processes that died, and remove them.

    Those of living processes are locked, and left alone. Safe at any time, any number of times.

    Returns:
        How many requests had begun and never ended.

    Raises:
        DatabaseDown: nothing has changed.
    """
    with ExitStack() as held:
        dead: list[Path] = []
        entries: list[Entry] = []
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                file = held.enter_context(path.open("rb"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # it is being written, or another process was faster
                continue
            found = list(read_journal(file))
            if damaged := found.count(None):
                log.error("%d damaged lines of %s were skipped", damaged, path.name)
            entries += [entry for entry in found if entry is not None]
            dead.append(path)
        ended = {entry.request: entry for entry in entries if entry.event == "end"}
        left = {
            entry.request: msgspec.structs.replace(entry, status=INTERRUPTED)
            for entry in entries
            if entry.event == "begin" and entry.request not in ended
        }
        post(database, [*ended.values(), *left.values()])
        for path in dead:
            path.unlink(missing_ok=True)
    return len(left)


def _row(entry: Entry) -> dict[str, str | int]:
    return {
        "id": entry.request,
        "day": datetime.fromtimestamp(entry.at, UTC).date().isoformat(),
        "tenant": entry.tenant,
        "key": entry.key,
        "model": entry.model[: schema.MODEL_CHARS],
        "prompt_tokens": entry.prompt_tokens,
        "cached_tokens": entry.cached_tokens,
        "completion_tokens": entry.completion_tokens,
        "member_tokens": entry.member_tokens,
        "pages": entry.pages,
        "status": entry.status,
    }
