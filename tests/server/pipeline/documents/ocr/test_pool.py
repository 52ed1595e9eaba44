"""The pool reads real pages in real child processes, and outlives what harms them."""

import asyncio
import os
import signal

import pytest
from tests.server.pipeline.documents.ocr.samples import (
    COLUMNS,
    INVOICE,
    encoded,
    invoice,
    line,
    pdf,
    text,
)

from turret_server.errors import BadRequest, Unprocessable
from turret_server.pipeline.documents.ocr import PicturePool, PictureSettings


@pytest.fixture(scope="module")
def run():
    """Runs coroutines on one event loop, as children belong to the loop that started them."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def pool(run):
    made = PicturePool(PictureSettings(page_timeout_s=30))
    yield made
    run(made.close())


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
