"""Whatever comes, a reader gives pages or an error that names what is wrong."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.pipeline.documents.readers.express import WRITERS
from tests.server.pipeline.documents.readers.test_formats import PAGE

from turret_server.errors import TurretError
from turret_server.pipeline.documents.page import Page
from turret_server.pipeline.documents.readers import FORMATS, ReadLimits, detect, read, read_value

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
EXAMPLES = {write: write(PAGE) for write in WRITERS}
JSON = [json.loads(data) for write, data in EXAMPLES.items() if FORMATS[WRITERS[write][0]].schemas]
LIMITS = ReadLimits(max_bytes=1 << 20, max_pages=5, max_words=50)


def check(pages: list[Page]) -> None:
    """What the layout relies on."""
    assert len(pages) <= LIMITS.max_pages
    for page in pages:
        assert 0 < page.width < math.inf
        assert 0 < page.height < math.inf
        assert page.number >= 1
        for word in page.words:
            assert word.text == word.text.strip() != ""
            word.text.encode()
            assert all(math.isfinite(value) for value in word.quad)
            assert word.confidence is None or 0 <= word.confidence <= 1


def check_outcome(call: Callable[[], list[Page]]) -> None:
    """Pages that the layout can rely on, or an error that is the caller's."""
    outcome = attempt(call)
    if isinstance(outcome, TurretError):
        assert 400 <= outcome.status < 500
        str(outcome).encode()
    else:
        check(outcome)


def attempt(call: Callable[[], list[Page]]) -> list[Page] | TurretError:
    try:
        return call()
    except TurretError as error:
        return error


def parts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all places in a JSON value."""
    found = [path]
    if isinstance(value, dict):
        for key in value:
            found += parts(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(len(value)):
            found += parts(value[i], (*path, i))
    return found


PLACES = [(i, path) for i, value in enumerate(JSON) for path in parts(value) if path]


@pytest.mark.parametrize("format", [None, *FORMATS])
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(value=VALUES)
def test_any_value_in_any_reader(format: str | None, value: Any) -> None:
    check_outcome(lambda: read_value(value, format, LIMITS))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_one_part_of_a_result_replaced(place: tuple[int, tuple[Any, ...]], value: Any) -> None:
    number, path = place
    whole = copy.deepcopy(JSON[number])
    inner = whole
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value

    check_outcome(lambda: read_value(whole, None, LIMITS))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    write=st.sampled_from(list(WRITERS)),
    at=st.floats(0, 1),
    cut=st.integers(0, 40),
    put=st.binary(max_size=6)
    | st.sampled_from([b"-1e999", b"NaN", b"\x00", b"<", b'"', b"\xff", b"\t"]),
)
def test_bytes_cut_out_and_put_in(write: Any, at: float, cut: int, put: bytes) -> None:
    data = EXAMPLES[write]
    start = int(at * len(data))
    spoilt = data[:start] + put + data[start + cut :]
    detect(spoilt)
    check_outcome(lambda: read(spoilt, None, LIMITS))
    check_outcome(lambda: read(spoilt, WRITERS[write][0], LIMITS))


@pytest.mark.parametrize("format", [None, *FORMATS])
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(data=st.binary(max_size=40))
def test_any_bytes_in_any_reader(format: str | None, data: bytes) -> None:
    check_outcome(lambda: read(data, format, LIMITS))
