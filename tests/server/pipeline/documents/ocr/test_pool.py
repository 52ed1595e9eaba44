"""The pool reads real pages in real child processes, and outlives what harms them."""

import asyncio
import importlib.util
import os
import signal
import sys
import time
from contextlib import contextmanager

import pytest
from PIL import Image
from tests.server.pipeline.documents.ocr.samples import (
    COLUMNS,
    INVOICE,
    encoded,
    invoice,
    line,
    pdf,
    png,
    text,
)

from turret_server.errors import (
    BadRequest,
    EngineUnavailable,
    Overloaded,
    PayloadTooLarge,
    Unprocessable,
)
from turret_server.pipeline.documents.ocr import PicturePool, PictureSettings, reading

LINE = ["Amount", "due", "512.40"]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@pytest.fixture(scope="module")
def run():
    """Runs coroutines on one event loop, as children belong to the loop that started them."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def pool(run):
    made = PicturePool(PictureSettings(workers=2, page_timeout_s=30))
    yield made
    run(made.close())


@contextmanager
def pool_of(run, **settings):
    made = PicturePool(PictureSettings(**settings))
    try:
        yield made
    finally:
        run(made.close())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def words(page):
    return [word.text for word in page.words]


def test_an_invoice_is_read_cell_by_cell(run, pool):
    (page,) = run(pool.read(encoded(invoice())))
    assert (page.width, page.height, page.unit, page.number) == (960, 480, "px", 1)
    lines: dict[int, list] = {}
    for word in page.words:
        lines.setdefault(word.line, []).append(word)
    cells = [(x, cell) for row in INVOICE for x, cell in zip(COLUMNS, row, strict=True) if cell]
    read = [(line[0].box[0], " ".join(word.text for word in line)) for line in lines.values()]
    assert [cell for _, cell in read] == ["INVOICE 2024-0117", *(cell for _, cell in cells)]
    for (left, cell), (x, _) in zip(read[1:], cells, strict=True):
        assert x - 2 <= left <= x + 6, cell  # letters begin a little to the right of their origin
    assert all(0.9 < word.confidence <= 1 for word in page.words)


def test_text_of_a_pdf_needs_no_ocr(run, pool):
    pages = run(pool.read(pdf(text("Hello world"), text("Second page"))))
    assert [words(page) for page in pages] == [["Hello", "world"], ["Second", "page"]]
    assert [(page.number, page.unit) for page in pages] == [(1, "pt"), (2, "pt")]


def test_a_picture_without_ocr_is_refused(run, pool):
    with pytest.raises(BadRequest, match="rules OCR out"):
        run(pool.read(encoded(line()), ocr="never"))


def test_pages_of_a_scan_are_read_side_by_side(run, pool):
    scan = pdf(*[b"q 200 0 0 30 50 100 cm /Im Do Q\n"] * 3, box=(0, 0, 300, 200), image=line())
    seen: list[tuple[int, int]] = []
    pages = run(pool.read(scan, progress=lambda done, total: seen.append((done, total))))
    assert [words(page) for page in pages] == [LINE] * 3
    assert [page.number for page in pages] == [1, 2, 3]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(pool._children.pids) == 2
    for word in pages[0].words:
        assert 50 < word.box[0] < word.box[2] < 250
        assert 200 - 130 < word.box[1] < word.box[3] < 200 - 100


def test_pages_are_chosen(run, pool):
    data = pdf(*(text(f"page{number}") for number in range(1, 5001)))
    with pytest.raises(PayloadTooLarge, match="5000 pages"):
        run(pool.read(data))
    pages = run(pool.read(data, pages=[4999, 2, 4999]))
    assert [words(page) for page in pages] == [["page4999"], ["page2"]]
    for wrong in ([0], [5001], [-1]):
        with pytest.raises(BadRequest, match="has no page"):
            run(pool.read(data, pages=wrong))
    with pytest.raises(BadRequest, match="no page is asked for"):
        run(pool.read(data, pages=[]))


def test_a_claim_of_pages_is_not_believed(run, pool):
    data = pdf(text("a")).replace(b"/Count 1 ", b"/Count 500000 ")
    with pytest.raises(PayloadTooLarge, match="500000 pages"):
        run(pool.read(data))
    with pytest.raises(BadRequest, match="page 400000 of the PDF cannot be read"):
        run(pool.read(data, pages=[400_000]))


def test_bad_files_harm_no_child(run, pool):
    run(pool.read(pdf(text("a"))))
    before = pool._children.pids
    for data, error in [
        (b"", BadRequest),
        (b"<svg/>", Unprocessable),
        (b"%PDF-1.7", BadRequest),
        (encoded(invoice())[:2000], BadRequest),
        (png(100_000, 100_000, b""), PayloadTooLarge),
        (bytes(pool.settings.max_bytes + 1), PayloadTooLarge),
    ]:
        with pytest.raises(error):
            run(pool.read(data))
    assert words(run(pool.read(pdf(text("a"))))[0]) == ["a"]
    assert pool._children.pids == before


def test_the_smallest_picture_has_no_words(run, pool):
    (page,) = run(pool.read(png(1, 1, b"\0\0")))
    assert page.words == []
    assert (page.width, page.height) == (1, 1)


def test_the_event_loop_goes_on(run, pool):
    async def longest_wait() -> list[float]:
        reading = asyncio.create_task(pool.read(encoded(invoice())))
        waits = []
        while not reading.done():
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            waits.append(time.perf_counter() - began - 0.005)
        await reading
        return sorted(waits)

    waits = run(longest_wait())
    assert len(waits) > 20
    assert waits[int(len(waits) * 0.9)] < 0.03


def test_a_killed_child_fails_one_request(run, pool):
    async def killed():
        await pool.read(encoded(line()))
        reading = asyncio.create_task(pool.read(encoded(invoice())))
        await asyncio.sleep(0.05)
        for pid in pool._children.pids:
            os.kill(pid, signal.SIGKILL)
        await reading

    with pytest.raises(Unprocessable, match="the process that read it ended"):
        run(killed())
    (page,) = run(pool.read(encoded(line())))
    assert words(page) == ["Amount", "due", "512.40"]


def test_a_hang_is_ended(run):
    with pool_of(run, workers=1, page_timeout_s=3.0) as pool:
        run(pool.read(pdf(text("a"))))
        (pid,) = pool._children.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(Unprocessable, match="takes more than 3 s"):
            run(pool.read(pdf(text("a"))))
        assert words(run(pool.read(pdf(text("b"))))[0]) == ["b"]
        assert pool._children.pids != [pid]


def test_a_document_has_its_time(run):
    with (
        pool_of(run, workers=1, document_timeout_s=0.05) as pool,
        pytest.raises(Unprocessable, match=r"its 100 pages take more than 0.05 s; \d+ are read"),
    ):
        run(pool.read(pdf(*[text("a b c " * 200)] * 100)))


@on_linux
def test_memory_is_limited(run):
    with pool_of(run, workers=1, memory_mib=256) as pool:
        large = encoded(Image.new("L", (7000, 7000), 255))
        with pytest.raises(Unprocessable, match="more than the 256 MiB of memory"):
            run(pool.read(large))
        assert words(run(pool.read(pdf(text("a"))))[0]) == ["a"]


def test_too_many_are_refused_at_once(run):
    async def burst(pool):
        first = asyncio.create_task(pool.read(pdf(text("first"))))
        second = asyncio.create_task(pool.read(pdf(text("second"))))
        await asyncio.sleep(0)
        began = time.perf_counter()
        with pytest.raises(Overloaded, match="1 documents wait to be read; 1 may"):
            await pool.read(pdf(text("third")))
        assert time.perf_counter() - began < 0.5
        return [words(page) for page in (*await first, *await second)]

    with pool_of(run, workers=1, max_waiting=1) as pool:
        assert run(burst(pool)) == [["first"], ["second"]]
        assert words(run(pool.read(pdf(text("later"))))[0]) == ["later"]


def test_a_cancelled_request_frees_its_place_and_its_child(run):
    async def cancelled(pool):
        begun = asyncio.Event()
        long = asyncio.create_task(
            pool.read(
                pdf(*[text("x", y=50)] * 100, box=(0, 0, 150, 100)),
                ocr="always",
                progress=lambda *_: begun.set(),
            )
        )
        await begun.wait()
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        return await pool.read(pdf(text("next")))

    with pool_of(run, workers=1, max_waiting=0) as pool:
        run(pool.read(pdf(text("a"))))
        before = pool._children.pids
        assert words(run(cancelled(pool))[0]) == ["next"]
        assert pool._children.pids == before


def test_a_long_document_lets_others_through(run, monkeypatch):
    monkeypatch.setattr(reading, "_SLICE_S", 0.0)

    async def both(pool):
        ended = []

        async def read(name, pages):
            await pool.read(pdf(*[text(name)] * pages))
            ended.append(name)

        long = asyncio.create_task(read("long", 100))
        await asyncio.sleep(0)
        await asyncio.gather(long, read("short", 3))
        return ended

    with pool_of(run, workers=1) as pool:
        assert run(both(pool)) == ["short", "long"]


def test_processes_come_when_needed_and_go_when_idle(run):
    with pool_of(run, workers=1, idle_s=0.05) as pool:
        assert pool._children.pids == []
        run(pool.read(pdf(text("a"))))
        (pid,) = pool._children.pids
        until = time.monotonic() + 10
        while alive(pid) and time.monotonic() < until:
            run(asyncio.sleep(0.05))
        assert not alive(pid)
        assert pool._children.pids == []
        run(pool.read(pdf(text("a"))))


def test_processes_end_with_the_pool(run):
    with pool_of(run, workers=1) as pool:
        run(pool.read(pdf(text("a"))))
        (pid,) = pool._children.pids
    assert not alive(pid)
    with pytest.raises(EngineUnavailable, match="shutting down"):
        run(pool.read(pdf(text("a"))))


def test_what_is_read_while_the_pool_closes_fails_in_name(run):
    async def closing(pool):
        long = asyncio.create_task(pool.read(pdf(*[text("x")] * 100), ocr="always"))
        await asyncio.sleep(0.3)
        await pool.close()
        await long

    with (
        pool_of(run, workers=1) as pool,
        pytest.raises(EngineUnavailable, match="shutting down"),
    ):
        run(closing(pool))


@on_linux
def test_a_child_is_confined(run, monkeypatch):
    monkeypatch.setenv("TURRET_TEST_SECRET", "hunter2")
    with pool_of(run, workers=1) as pool:
        run(pool.read(encoded(line())))
        (pid,) = pool._children.pids
        with open(f"/proc/{pid}/environ") as file:
            assert "hunter2" not in file.read()
        with open(f"/proc/{pid}/maps") as file:
            maps = file.read()
        assert "onnxruntime" in maps
        assert "torch" not in maps
        with open(f"/proc/{pid}/limits") as file:
            limits = {row[:25].strip(): row[26:].split()[0] for row in file}
        assert limits["Max data size"] == str(2048 * 2**20)
        assert limits["Max file size"] == limits["Max core file size"] == "0"
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19  # nobody else waits for it


def test_without_the_packages(run, pool, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unprocessable, match=r"pip install 'turret\[documents\]'"):
        run(pool.read(encoded(line())))
