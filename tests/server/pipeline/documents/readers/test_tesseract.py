"""What Tesseract 5.3 wrote of one small page: a table, and a line that runs up its right edge.

The page was rendered with pillow and read with `tesseract page.png page --psm 1 tsv hocr alto`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from turret_server.pipeline.documents.page import Page, upright
from turret_server.pipeline.documents.readers import detect, read

FIXTURES = Path(__file__).parent / "fixtures"
FILES = {"tesseract-tsv": "tesseract.tsv", "hocr": "tesseract.hocr", "alto": "tesseract.alto.xml"}
TEXT = (
    "Invoice 2024/17 Item aty Bolts & nuts 12 Washers 200 Total Price 4.50 19.00 23.50 "
    "Paid in full by card"
)


@pytest.fixture(params=FILES)
def page(request: pytest.FixtureRequest) -> Page:
    data = (FIXTURES / FILES[request.param]).read_bytes()
    assert detect(data) == request.param
    (page,) = read(data)
    return page


def test_words_and_page(page: Page) -> None:
    assert " ".join(word.text for word in page.words) == TEXT
    assert (page.width, page.height, page.unit) == (640, 330, "px")


def test_boxes_and_confidences(page: Page) -> None:
    word = page.words[1]

    assert word.quad == upright(100, 26, 183, 43)
    assert word.confidence == pytest.approx(0.965, abs=0.01)


def test_lines_and_blocks(page: Page) -> None:
    lines = {}
    for word in page.words:
        lines.setdefault((word.block, word.line), []).append(word.text)

    assert [" ".join(words) for words in lines.values()] == [
        "Invoice 2024/17", "Item aty", "Bolts & nuts 12", "Washers 200", "Total",
        "Price", "4.50", "19.00", "23.50", "Paid in full by card",
    ]  # fmt: skip
    assert len({block for block, _ in lines}) == 5


def test_text_up_the_page_has_its_first_corner_below(page: Page) -> None:
    paid = page.words[15]

    assert paid.text == "Paid"
    assert paid.quad == (571, 303, 571, 262, 587, 262, 587, 303)
