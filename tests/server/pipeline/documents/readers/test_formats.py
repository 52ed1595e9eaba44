"""The same page in every format gives the same words and boxes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tests.server.pipeline.documents.readers.express import WRITERS

from turret_server.pipeline.documents.page import Page, Word, upright
from turret_server.pipeline.documents.readers import FORMATS, detect, read, read_value

LINES = (
    (("Invoice", 100, 50, 190, 70), ("№", 200, 50, 220, 70), ("2024/17", 230, 50, 320, 70)),
    (("Größe", 100, 90, 160, 110), ("<M>", 400, 90, 440, 110), ("&", 450, 90, 460, 110)),
    (
        ("請求書", 100, 130, 160, 150),
        ("מחיר", 300, 130, 350, 150),
        ("1,200.00", 420, 131, 500, 149),
    ),
)
PAGE = Page(
    [
        Word(text, upright(*box), 0.5 + 0.01 * i, line, 0)
        for line, words in enumerate(LINES)
        for i, (text, *box) in enumerate(words)
    ],
    600.0,
    400.0,
)
CASES = [pytest.param(write, *case, id=write.__name__) for write, case in WRITERS.items()]
WITHOUT_LINES = {"rapidocr", "paddleocr", "words"}
WITHOUT_CONFIDENCE = {"azure-read"}


@pytest.mark.parametrize(("write", "name", "precision"), CASES)
def test_a_page_is_the_same_in_every_format(
    write: Callable[[Page], bytes], name: str, precision: float
) -> None:
    (page,) = read(write(PAGE))

    assert [word.text for word in page.words] == [word.text for word in PAGE.words]
    assert page.number == 1
    scale_x, scale_y = (600.0, 400.0) if page.unit == "relative" else (1.0, 1.0)
    for word, known in zip(page.words, PAGE.words, strict=True):
        scaled = [value * (scale_x, scale_y)[i % 2] for i, value in enumerate(word.quad)]
        assert scaled == pytest.approx(known.quad, abs=precision or 1e-9)
        if name not in WITHOUT_CONFIDENCE:
            assert word.confidence == pytest.approx(known.confidence, abs=0.006)


@pytest.mark.parametrize(("write", "name", "precision"), CASES)
def test_the_format_is_found_by_the_content(
    write: Callable[[Page], bytes], name: str, precision: float
) -> None:
    assert detect(write(PAGE)) == name


@pytest.mark.parametrize(("write", "name", "precision"), CASES)
def test_a_named_format_reads_as_a_detected_one(
    write: Callable[[Page], bytes], name: str, precision: float
) -> None:
    assert read(write(PAGE), name) == read(write(PAGE))


@pytest.mark.parametrize(("write", "name", "precision"), CASES)
def test_a_parsed_value_reads_as_its_bytes(
    write: Callable[[Page], bytes], name: str, precision: float
) -> None:
    data = write(PAGE)
    value = json.loads(data) if FORMATS[name].schemas else data.decode()

    assert read_value(value) == read(data)


@pytest.mark.parametrize(
    ("write", "name", "precision"), [case for case in CASES if case.values[1] not in WITHOUT_LINES]
)
def test_words_of_a_line_share_its_number(
    write: Callable[[Page], bytes], name: str, precision: float
) -> None:
    (page,) = read(write(PAGE))

    assert [word.line for word in page.words] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_every_format_is_written_here() -> None:
    assert {name for name, _ in WRITERS.values()} | {"docvqa"} == set(FORMATS)
