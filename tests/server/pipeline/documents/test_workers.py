"""The processes that read OCR results, in one test each: they take a moment to start."""

from __future__ import annotations

import asyncio
import json

import pytest

from turret_server.errors import (
    BadRequest,
    EngineUnavailable,
    Overloaded,
    PayloadTooLarge,
    Unprocessable,
)
from turret_server.pipeline.documents import worker
from turret_server.pipeline.documents.layout import LayoutOptions, lay_out
from turret_server.pipeline.documents.page import Page, Word
from turret_server.pipeline.documents.readers import ReadLimits, read
from turret_server.pipeline.documents.worker_wire import Problem, Read
from turret_server.pipeline.documents.workers import DocumentWorkers

RESULT = json.dumps({"words": ["Total", "5"], "boxes": [[0, 0, 50, 10], [90, 0, 100, 10]]}).encode()


def make(count=1, timeout_s=30.0, max_waiting=8, **limits):
    return DocumentWorkers(count, timeout_s, max_waiting, ReadLimits(**limits), max_chars=1000)


async def test_a_process_reads_and_lays_out_and_lives_on():
    workers = make(max_words=3)
    try:
        pages = await workers.read(RESULT)
        assert pages == read(RESULT)
        (process,) = workers._idle
        assert await workers.lay_out(pages, LayoutOptions(mode="latin")) == [
            lay_out(pages[0], LayoutOptions(mode="latin"))
        ]
        with pytest.raises(BadRequest, match="Textract"):
            await workers.read(RESULT, "textract")
        with pytest.raises(PayloadTooLarge):
            await workers.read(
                RESULT.replace(b'["Total", "5"]', b'["a", "b", "c", "d"]').replace(
                    b"[[0,", b"[[0, 0, 1, 1], [0, 0, 1, 1], [0,"
                )
            )
        with pytest.raises(BadRequest):
            await workers.read(b"[" * 1_000_000)
        with pytest.raises(PayloadTooLarge, match="1,000 characters on page 1"):
            await workers.lay_out([Page([Word("x" * 1001, (0.0,) * 8)], 1, 1)], LayoutOptions())
        assert workers._idle == [process]
        assert await workers.lay_out([], LayoutOptions()) == []
    finally:
        await workers.close()
    assert process.returncode is not None


async def test_a_process_that_is_given_up_is_ended_and_replaced():
    workers = make(timeout_s=0.01)  # it takes longer than that to start
    with pytest.raises(Unprocessable, match=r"more than 0\.01 s"):
        await workers.read(RESULT)
    assert workers._idle == []
    workers._timeout_s = 30.0
    call = asyncio.create_task(workers.read(RESULT))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert workers._idle == []
    try:
        assert await workers.read(RESULT) == read(RESULT)
        workers._idle[0].kill()
        await workers._idle[0].wait()
        with pytest.raises(Unprocessable, match="has ended"):
            await workers.read(RESULT)
        assert await workers.read(RESULT) == read(RESULT)
    finally:
        await workers.close()


async def test_too_many_jobs_are_refused(monkeypatch):
    workers = make(max_waiting=1)
    release = asyncio.Event()

    async def start():
        await release.wait()
        raise OSError

    monkeypatch.setattr("turret_server.pipeline.documents.workers._start", start)
    jobs = [asyncio.create_task(workers.read(RESULT)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="1 documents wait"):
        await workers.read(RESULT)
    release.set()
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(result) for result in results] == [EngineUnavailable] * 2


async def test_a_tenant_alone_fills_half_of_the_queue(monkeypatch):
    workers = make(max_waiting=4)
    release = asyncio.Event()

    async def start():
        await release.wait()
        raise OSError

    monkeypatch.setattr("turret_server.pipeline.documents.workers._start", start)
    jobs = [asyncio.create_task(workers.read(RESULT, owner="noisy")) for _ in range(3)]
    for _ in range(3):
        await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 documents wait"):
        await workers.read(RESULT, owner="noisy")
    jobs.append(asyncio.create_task(workers.read(RESULT, owner="quiet")))
    release.set()
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(result) for result in results] == [EngineUnavailable] * 4


def test_an_unforeseen_error_is_one_of_its_document(monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(worker, "read", broken)
    problem = worker._done(Read(b"", None, ReadLimits()))
    assert isinstance(problem, Problem)
    assert isinstance(problem.error(), Unprocessable)
    assert "ZeroDivisionError: inside" in capsys.readouterr().err

    def hungry(*_):
        raise MemoryError

    monkeypatch.setattr(worker, "read", hungry)
    problem = worker._done(Read(b"", None, ReadLimits()))
    assert isinstance(problem, Problem)
    assert "memory" in problem.why
