"""The ledger: each accepted request once, whatever dies, is full, or is damaged."""

import asyncio
import errno
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass

import msgspec
import pytest

from turret_server.tenancy import journal as journal_module
from turret_server.tenancy import ledger as ledger_module
from turret_server.tenancy.administration import Administration
from turret_server.tenancy.database import Database, DatabaseDown
from turret_server.tenancy.journal import SUFFIX, Entry, Journal, read_journal
from turret_server.tenancy.ledger import Ledger, UsageNotRecorded, recover

DAY = 1_764_288_000  # 2025-11-28


def begun(request, **fields):
    return Entry(request, "begin", DAY, "acme", "tk-12345678", "sql", 10, **fields)


def ended(request, tokens=5, **fields):
    entry = begun(request, **fields)
    return msgspec.structs.replace(
        entry, event="end", completion_tokens=tokens, cached_tokens=2, status="done"
    )


def totals(admin):
    """Requests, prompt tokens, completion tokens, interrupted."""
    rows = admin.usage()
    names = ("requests", "prompt_tokens", "completion_tokens", "interrupted")
    return tuple(sum(row[name] for row in rows) for name in names)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "journals"


async def test_what_ends_is_in_the_database_and_the_journal_is_gone(database, admin, folder):
    ledger = Ledger(database, folder)
    for name in "abc":
        await ledger.begin(begun(name))
    for name in "ab":
        await ledger.end(ended(name, pages=1, member_tokens=4))
    ledger.end_soon(ended("c", pages=1))
    await ledger.close()
    assert admin.usage() == [
        {
            "day": "2025-11-28",
            "tenant": "acme",
            "key": "tk-12345678",
            "model": "sql",
            "requests": 3,
            "prompt_tokens": 30,
            "cached_tokens": 6,
            "completion_tokens": 15,
            "member_tokens": 8,
            "pages": 3,
            "interrupted": 0,
        }
    ]
    assert list(folder.iterdir()) == []


async def test_usage_is_summed_per_day_tenant_key_and_model(database, admin, folder):
    ledger = Ledger(database, folder)
    changes = [{}, {"at": DAY + 86_400}, {"tenant": "b"}, {"key": "tk-other"}, {"model": "dates"}]
    for number, change in enumerate(changes):
        await ledger.end(msgspec.structs.replace(ended(str(number)), **change))
    await ledger.close()
    assert [row["requests"] for row in admin.usage()] == [1] * 5
    assert [row["tenant"] for row in admin.usage(tenant="b")] == ["b"]
    assert [row["day"] for row in admin.usage(since="2025-11-29")] == ["2025-11-29"]
    assert len(admin.usage(until="2025-11-28")) == 4


async def test_it_is_carried_over_while_serving(database, admin, folder):
    ledger = Ledger(database, folder, interval_s=0.01)
    ledger.start()
    await ledger.begin(begun("a"))
    await ledger.end(ended("a"))
    async with asyncio.timeout(10):
        while totals(admin) != (1, 10, 5, 0):
            await asyncio.sleep(0.01)
    await ledger.close()
    assert totals(admin) == (1, 10, 5, 0)


async def test_a_database_that_is_down_is_waited_for(database, admin, folder, monkeypatch):
    ledger = Ledger(database, folder)
    await ledger.end(ended("a"))

    def fail(*_):
        raise DatabaseDown("the database does not answer", "it is down")

    with monkeypatch.context() as patched:
        patched.setattr(ledger_module, "post", fail)
        assert not await ledger._carry()
    await ledger.end(ended("b"))
    assert totals(admin) == (0, 0, 0, 0)
    await ledger.close()
    assert totals(admin) == (2, 20, 10, 0)


async def test_a_database_that_stays_down_leaves_the_journal_to_the_next_process(
    database, admin, folder, monkeypatch
):
    ledger = Ledger(database, folder)
    await ledger.begin(begun("a"))
    await ledger.end(ended("a"))

    def fail(*_):
        raise DatabaseDown("the database does not answer", "it is down")

    with monkeypatch.context() as patched:
        patched.setattr(ledger_module, "post", fail)
        await ledger.close()
    assert recover(database, folder) == 0
    assert totals(admin) == (1, 10, 5, 0)
    assert list(folder.iterdir()) == []


async def test_an_end_amid_a_carry_that_fails_leaves_the_journal_to_the_next_process(
    database, admin, folder, monkeypatch
):
    ledger = Ledger(database, folder, interval_s=0)
    await ledger.begin(begun("a"))
    await ledger.end(ended("a"))
    has_begun, goes_on = threading.Event(), threading.Event()

    def hang(_, entries):
        if not entries:  # the journals of others, at the start
            return
        has_begun.set()
        goes_on.wait(10)
        raise DatabaseDown("the database does not answer", "it is down")

    with monkeypatch.context() as patched:
        patched.setattr(ledger_module, "post", hang)
        ledger.start()
        await asyncio.to_thread(has_begun.wait)
        asyncio.get_running_loop().call_later(0.05, goes_on.set)
        await ledger.close()
    assert recover(database, folder) == 0
    assert totals(admin) == (1, 10, 5, 0)


async def test_a_full_disk_refuses_the_request_and_the_journal_stays_whole(
    database, admin, folder, monkeypatch
):
    ledger = Ledger(database, folder)
    await ledger.begin(begun("a"))
    full = True

    def write_half(fd):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal_module.os, "fdatasync", write_half)
    with pytest.raises(UsageNotRecorded, match="No space left") as caught:
        await ledger.begin(begun("b"))
    assert caught.value.status == 503
    assert caught.value.retry_after_s
    await ledger.end(ended("a"))  # counts while the process lives
    full = False
    await ledger.begin(begun("c"))
    with ledger._journal.path.open("rb") as file:
        assert [entry.request for entry in read_journal(file)] == ["a", "c"]
    await ledger.end(ended("c"))
    await ledger.close()
    assert totals(admin) == (2, 20, 10, 0)


@dataclass
class Killed:
    """A process that was killed in the midst of its work."""

    acknowledged: list[str]


def _work(folder, pipe):
    async def run():
        journal = Journal(folder)
        for number in range(10_000):
            name = f"r{number}"
            await journal.append(begun(name))
            pipe.send(name)
            if number % 2:
                await journal.append(ended(name))

    asyncio.run(run())


def test_kill_minus_nine_loses_no_acknowledged_request(database, admin, folder):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(folder, sender))
    process.start()
    names = [receiver.recv() for _ in range(300)]
    assert recover(database, folder) == 0  # it lives, and its journal is left alone
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while receiver.poll():
        try:
            names.append(receiver.recv())
        except EOFError:
            break
    interrupted = recover(database, folder)
    requests, prompt, completion, shown = totals(admin)
    # One more may be on the disk without having been acknowledged.
    assert len(names) <= requests <= len(names) + 1
    assert prompt == 10 * requests
    assert completion == 5 * (requests - interrupted)
    assert shown == interrupted >= len(names) // 2
    assert recover(database, folder) == 0
    assert totals(admin) == (requests, prompt, completion, shown)


async def test_what_was_carried_over_before_the_crash_counts_once(
    database, admin, folder, tmp_path
):
    ledger = Ledger(database, folder)
    await ledger.begin(begun("a"))
    await ledger.end(ended("a"))
    await ledger.begin(begun("b"))
    assert await ledger._carry()
    copy = ledger._journal.path.read_bytes()  # as a killed process would leave it
    await ledger.close()
    ledger._journal.path.unlink()
    (folder / f"dead{SUFFIX}").write_bytes(copy)
    assert recover(database, folder) == 1
    assert totals(admin) == (2, 20, 5, 1)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:-9]], (3, 3, 1)),  # torn in the last write
        (lambda lines: [lines[0], b"\0" * 80 + b"\n", *lines[2:]], (3, 3, 1)),
        (lambda lines: [lines[0], lines[1].replace(b"acme", b"ACME"), *lines[2:]], (3, 3, 1)),
        (lambda lines: [b"zz" + line for line in lines], (0, 0, 0)),
        (lambda lines: [*lines, b'00000000 {"request": 3}\n'], (3, 3, 0)),
        (lambda lines: [], (0, 0, 0)),
    ],
    ids=["torn", "zeros", "changed", "all", "foreign", "empty"],
)
async def test_damaged_lines_are_skipped(database, admin, folder, damage, found):
    journal = Journal(folder)
    for name in "abc":
        await journal.append(begun(name), ended(name))
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.close()
    journal.path.write_bytes(b"".join(damage(lines)))
    interrupted = recover(database, folder)
    requests, prompt, _, shown = totals(admin)
    assert (requests, prompt // 10, interrupted) == found
    assert shown == interrupted


async def test_a_long_journal_is_turned_over_with_what_is_open(
    database, admin, folder, monkeypatch
):
    ledger = Ledger(database, folder)
    await ledger.begin(begun("open"))
    for number in range(20):
        await ledger.begin(begun(str(number)))
        await ledger.end(ended(str(number)))
    old = ledger._journal.path
    await ledger._turn_over()
    (new,) = folder.iterdir()
    assert new != old
    with new.open("rb") as file:
        assert [entry.request for entry in read_journal(file)] == ["open"]
    await ledger.end(ended("open"))
    await ledger.close()
    assert totals(admin) == (21, 210, 105, 0)


async def test_what_begins_while_the_journal_is_turned_over_is_in_the_new_one(
    database, folder, monkeypatch
):
    ledger = Ledger(database, folder)
    append, begins = Journal.append, []

    async def slow(journal, *entries):
        if not begins and journal is not ledger._journal:
            begins.append(asyncio.create_task(ledger.begin(begun("meanwhile"))))
            await asyncio.sleep(0)
        await append(journal, *entries)

    monkeypatch.setattr(Journal, "append", slow)
    await ledger.begin(begun("open"))
    await ledger._turn_over()
    await begins[0]
    (new,) = folder.iterdir()
    with new.open("rb") as file:
        assert {entry.request for entry in read_journal(file)} == {"open", "meanwhile"}
    await ledger.close()


async def test_what_ends_while_the_journal_is_turned_over_is_carried_over_with_it(
    database, admin, folder, monkeypatch
):
    """Its end stood in the old journal alone, which was removed: a kill made it interrupted."""
    ledger = Ledger(database, folder)
    await ledger.begin(begun("a"))
    old, goes_on = ledger._journal, threading.Event()
    write = old._write

    def slow(lines):
        goes_on.wait(10)
        return write(lines)

    monkeypatch.setattr(old, "_write", slow)
    ending = asyncio.create_task(ledger.end(ended("a")))
    await asyncio.sleep(0)
    turning = asyncio.create_task(ledger._turn_over())
    async with asyncio.timeout(10):
        while ledger._journal is old:
            await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_later(0.05, goes_on.set)
    await turning
    assert totals(admin) == (1, 10, 5, 0)
    assert not old.path.exists()
    await ending
    await ledger.close()


async def test_a_new_journal_that_cannot_be_made_does_not_end_the_carrying_over(
    database, admin, folder, monkeypatch
):
    """With no file left to open, usage stayed in memory until the server ended."""
    ledger = Ledger(database, folder, interval_s=0.01)
    asked = asyncio.Event()

    def refuse(_):
        asked.set()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(ledger_module, "_MAX_LINES", 0)
    monkeypatch.setattr(ledger_module, "Journal", refuse)
    ledger.start()
    await ledger.end(ended("a"))
    async with asyncio.timeout(10):
        await asked.wait()
        await ledger.end(ended("b"))
        while ledger.waiting:
            await asyncio.sleep(0.01)
    await ledger.close()
    assert totals(admin) == (2, 20, 10, 0)


async def test_an_unforeseen_fault_does_not_end_the_carrying_over_and_loses_nothing(
    database, admin, folder, monkeypatch
):
    ledger, faults, post = Ledger(database, folder, interval_s=0.01), [], ledger_module.post

    def fail_once(database, entries):
        if entries and not faults:
            faults.append(True)
            raise OverflowError("a fault")
        post(database, entries)

    monkeypatch.setattr(ledger_module, "post", fail_once)
    ledger.start()
    await ledger.end(ended("a"))
    async with asyncio.timeout(10):
        while not faults or ledger.waiting:
            await asyncio.sleep(0.01)
    assert ledger.database_errors == 1
    await ledger.close()
    assert totals(admin) == (1, 10, 5, 0)


async def test_an_entry_that_cannot_be_written_harms_no_other(database, admin, folder):
    """It ended the journal's thread, and every later request waited for ever."""
    ledger = Ledger(database, folder)
    with pytest.raises(UnicodeEncodeError):
        await ledger.begin(msgspec.structs.replace(begun("a"), model="\ud800"))
    async with asyncio.timeout(10):
        await ledger.begin(begun("b"))
        await ledger.end(ended("b"))
        await ledger.close()
    assert totals(admin) == (1, 10, 5, 0)
    assert list(folder.iterdir()) == []


async def test_many_at_once_share_a_sync(database, folder, monkeypatch):
    syncs, sync = [], os.fdatasync
    monkeypatch.setattr(journal_module.os, "fdatasync", lambda fd: (syncs.append(fd), sync(fd)))
    journal = Journal(folder)
    await asyncio.gather(*(journal.append(begun(str(i))) for i in range(500)))
    assert journal.lines == 500
    assert len(syncs) < 100
    journal.close()


def test_a_second_database_object_reads_the_same(url, database):
    admin = Administration(Database(url), "other")
    admin.create_tenant("acme")
    assert Administration(database, "cli").keys() == []
    assert database.revision() == 1
