"""The words in the given order, joined by one space: the paper's baseline without layout."""

from __future__ import annotations

from turret_server.pipeline.documents.layout.text import PageText, TextBuilder, collapse
from turret_server.pipeline.documents.page import Page


def lay_out_plain(page: Page) -> PageText:
    """The page's words, in the source's order, with one space between any two."""
    builder = TextBuilder(len(page.words))
    separator = 0
    for index, word in enumerate(page.words):
        if text := collapse(word.text):
            builder.space(separator)
            builder.word(index, text)
            separator = 1
    return builder.finish()
