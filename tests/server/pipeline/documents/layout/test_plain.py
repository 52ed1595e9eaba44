from __future__ import annotations

from turret_server.pipeline.documents.layout import LayoutOptions, lay_out
from turret_server.pipeline.documents.page import Page, Word, upright


def test_words_are_joined_by_one_space_in_the_given_order():
    words = [Word(text, upright(0, 0, 1, 1)) for text in ("b", "a  line\tof\nmany", " ", "a")]
    laid_out = lay_out(Page(words, width=1, height=1), LayoutOptions(mode="plain"))
    assert laid_out.text == "b a line of many a"
    assert laid_out.spans == [(0, 1), (2, 16), (-1, -1), (17, 18)]
