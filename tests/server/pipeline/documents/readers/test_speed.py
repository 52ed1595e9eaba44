"""Reading takes about as long as parsing the same bytes does, and not several times that.

The aim is twice json.loads or ElementTree. What tools write meets it on a quiet machine; pages of
words and nothing else, as here, come close to it in XML. The bound leaves room for noise.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from tests.server.pipeline.documents.readers.express import WRITERS

from turret_server.pipeline.documents.page import Page, Word, upright
from turret_server.pipeline.documents.readers import read

PAGE = Page(
    [
        Word(f"word{i}", upright(x, y, x + 150, y + 9), i % 100 / 100, i // 10, 0)
        for i in range(1500)
        for x, y in [(100 + i % 10 * 200.5, 50 + i // 10 * 11.25)]
    ],
    2480.0,
    3508.0,
)


def cpu_s(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def parse(data: bytes) -> object:
    if data.startswith(b"<"):
        return ElementTree.fromstring(data)
    if data.startswith((b"{", b"[")):
        return json.loads(data)
    return list(csv.reader(io.StringIO(data.decode()), delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_reading_is_about_as_fast_as_parsing(write: Callable[[Page], bytes]) -> None:
    data = write(PAGE)
    pairs = [(cpu_s(lambda: parse(data)), cpu_s(lambda: read(data))) for _ in range(7)]
    parsing, reading = map(min, zip(*pairs, strict=True))

    assert reading < 4 * parsing
