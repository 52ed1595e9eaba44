"""Cells of several lines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from turret_server.pipeline.documents.cite.joins import Grid
from turret_server.pipeline.documents.layout.text import PageText
from turret_server.pipeline.documents.page import Page

TEXT = """\
Number    States     Total
of all               (n)
          included
          here

                     wide cell"""


@pytest.mark.parametrize(
    ("above", "below", "expected"),
    [
        ("Number", "of all", True),
        ("States", "included", True),  # a line of other cells stands between
        ("included", "here", True),
        ("Total", "(n)", True),
        ("(n)", "wide cell", False),  # too far below
        ("Number", "(n)", False),  # beside
        ("States Total", "(n)", True),
        ("Number", "States", False),
        ("of all", "Number", False),  # above
        ("here", "wide", False),
    ],
)
def test_what_goes_on_stands_below(
    draw: Callable[[str], tuple[Page, PageText]], above: str, below: str, expected: bool
) -> None:
    page, text = draw(TEXT)
    number = {word.text: at for at, word in enumerate(page.words)}
    first, second = ([number[word] for word in words.split()] for words in (above, below))
    assert Grid(text).goes_on(first, second) is expected
