"""What no format may do: harm the server, or be read as what it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.server.pipeline.documents.readers.express import WRITERS
from tests.server.pipeline.documents.readers.test_formats import PAGE

from turret_server.errors import BadRequest, PayloadTooLarge
from turret_server.pipeline.documents.page import Page, Word, upright
from turret_server.pipeline.documents.readers import (
    FORMATS,
    ReadLimits,
    detect,
    read,
    read_value,
)

EMPTY = Page([], 600.0, 400.0)
CASES = [pytest.param(write, case[0], id=write.__name__) for write, case in WRITERS.items()]


def with_box(*box: float) -> Page:
    return Page([Word("word", upright(*box), 0.5, 0, 0)], 600.0, 400.0)


@pytest.mark.parametrize(("write", "name"), CASES)
def test_an_empty_page_is_a_page(write: Callable[[Page], bytes], name: str) -> None:
    assert [page.words for page in read(write(EMPTY), name)] == [[]]


@pytest.mark.parametrize(
    ("write", "name"),
    [case for case in CASES if case.values[1] != "tesseract-tsv"],  # rows may end anywhere
)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_file_that_was_cut_off_is_refused(
    write: Callable[[Page], bytes], name: str, share: float
) -> None:
    data = write(PAGE)

    with pytest.raises(BadRequest):
        read(data[: int(share * len(data))], name)


@pytest.mark.parametrize(("write", "name"), CASES)
@pytest.mark.parametrize("claimed", FORMATS)
def test_a_wrong_claim_is_answered_by_what_the_content_is(
    write: Callable[[Page], bytes], name: str, claimed: str
) -> None:
    if FORMATS[claimed] is FORMATS[name]:
        return
    with pytest.raises(BadRequest) as error:
        read(write(PAGE), claimed)

    assert FORMATS[claimed].title in error.value.what
    assert FORMATS[name].title in error.value.why
    assert repr(name) in error.value.fix


@pytest.mark.parametrize(("write", "name"), CASES)
def test_a_box_near_the_page_is_kept_and_one_far_off_refused(
    write: Callable[[Page], bytes], name: str
) -> None:
    (page,) = read(write(with_box(-30, 390, 40, 410)), name)
    assert page.words[0].box[0] * (600 if page.unit == "relative" else 1) == pytest.approx(-30)

    with pytest.raises(BadRequest, match="'word' lies at"):
        read(write(with_box(1e8, 10, 1e8 + 50, 20)), name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("format", ["words", "azure", "doctr", "due", "rapidocr"])
def test_numbers_that_are_none_are_refused_in_values(format: str, value: float) -> None:
    box = [value, 10, 40, 20]
    quad = [value, 10, 40, 10, 40, 20, value, 20]
    points = [[value, 10], [40, 10], [40, 20], [value, 20]]
    word: dict[str, Any] = {"value": "word", "geometry": [[value, 0.1], [0.2, 0.3]]}
    page = {"pageNumber": 1, "words": [{"content": "word", "polygon": quad}]}
    results = {
        "words": {"words": ["word"], "boxes": [box]},
        "azure": {"analyzeResult": {"pages": [page]}},
        "doctr": {"dimensions": [9, 9], "blocks": [{"lines": [{"words": [word]}]}]},
        "due": {"tokens": ["word"], "positions": [box]},
        "rapidocr": [[points, "word", 0.5]],
    }

    with pytest.raises(BadRequest, match="'word' lies at"):
        read_value(results[format], format)


@pytest.mark.parametrize("token", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused_in_bytes(token: str) -> None:
    data = '{"words": ["word"], "boxes": [[1, 2, ' + token + ", 4]]}"

    with pytest.raises(BadRequest):
        read(data.encode())


def test_inverted_boxes_are_turned_over() -> None:
    (page,) = read_value({"words": ["a", "b"], "boxes": [[40, 10, 10, 20], [50, 20, 80, 10]]})

    assert [word.box for word in page.words] == [(10, 10, 40, 20), (50, 10, 80, 20)]


def test_limits() -> None:
    value = {"pages": [{"words": ["a"], "boxes": [[1, 2, 3, 4]]}] * 3}

    for limits, what in (
        (ReadLimits(max_pages=2), "too many pages"),
        (ReadLimits(max_words=2), "too many words"),
    ):
        with pytest.raises(PayloadTooLarge, match=what):
            read_value(value, "words", limits)
    with pytest.raises(PayloadTooLarge, match="too large"):
        read(json.dumps(value).encode(), "words", ReadLimits(max_bytes=50))
    assert len(read_value(value, "words", ReadLimits(max_pages=3, max_words=3))) == 3


@pytest.mark.parametrize("format", FORMATS)
def test_deep_nesting_is_refused(format: str) -> None:
    deep: Any = []
    for _ in range(50_000):
        deep = [deep]

    for bracket in (b"[", b'{"pages":', b"<a>"):
        with pytest.raises(BadRequest):
            read(bracket * 50_000, format)
    with pytest.raises(BadRequest):
        read_value({"pages": deep, "words": deep, "Blocks": deep}, format)
    while deep:  # so that its end does not recurse either
        deep = deep[0]


def test_what_is_none_of_the_formats() -> None:
    for data in (b"", b"hello", b"<svg/>", b"{}", b"[]", b"null", b"\x89PNG\r\n", b"{"):
        assert detect(data) is None
        with pytest.raises(BadRequest, match="not recognised"):
            read(data)


def test_an_unknown_name_is_answered_by_the_known_ones() -> None:
    with pytest.raises(BadRequest, match=r"no OCR format 'abbyy'.*textract"):
        read(b"{}", "abbyy")


def test_text_is_cleaned() -> None:
    texts = [" a ", "", " ", "b\tc\n d", "\ud800e\x00", "\ufeff"]
    value = {"words": texts, "boxes": [[1, 2, 3, 4]] * len(texts)}

    (page,) = read_value(value)

    assert [word.text for word in page.words] == ["a", "b c d", "e"]


def test_confidences_are_clamped() -> None:
    value = {"words": ["a", "b", "c"], "boxes": [[1, 2, 3, 4]] * 3, "scores": [7, -1, None]}

    assert [word.confidence for word in read_value(value)[0].words] == [1, 0, None]


def test_no_two_pages_have_the_same_number() -> None:
    page = {"words": ["a"], "boxes": [[1, 2, 3, 4]]}
    given = [page | {"page": n} for n in (2, 2, 0, 9, -1)] + [page | {"page": "cover"}]

    assert [found.number for found in read_value(given)] == [2, 3, 4, 9, 5, 6]
