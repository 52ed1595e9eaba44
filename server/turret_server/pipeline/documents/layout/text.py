"""What the layout of a page comes to."""

from __future__ import annotations

import msgspec


class PageText(msgspec.Struct, frozen=True):
    """A page as text.

    Attributes:
        text: the lines, joined by newlines; no trailing white space, no final newline.
        spans: for each word of the page, in the page's order, the start and end (exclusive) of its
            text in `text`; (-1, -1) where the word was left out. Citations are found by them.
    """

    text: str
    spans: list[tuple[int, int]]
