"""What the layout of a page comes to, and how it is put together."""

from __future__ import annotations

import msgspec

ABSENT: tuple[int, int] = (-1, -1)


class PageText(msgspec.Struct, frozen=True):
    """A page as text.

    Attributes:
        text: the lines, joined by newlines; no trailing white space, no final newline.
        spans: for each word of the page, in the page's order, the start and end (exclusive) of its
            text in `text`; (-1, -1) where the word was left out. Citations are found by them.
    """

    text: str
    spans: list[tuple[int, int]]


class TextBuilder:
    """Appends words and white space, and remembers where each word went.

    Attributes:
        length: of the text so far.
    """

    def __init__(self, word_count: int) -> None:
        """Starts an empty text for a page of `word_count` words."""
        self._parts: list[str] = []
        self.length = 0
        self._spans = [ABSENT] * word_count

    def space(self, count: int) -> None:
        """Appends `count` spaces; none if it is negative."""
        if count > 0:
            self._parts.append(" " * count)
            self.length += count

    def newline(self, count: int = 1) -> None:
        """Ends `count` lines."""
        self._parts.append("\n" * count)
        self.length += count

    def word(self, index: int, text: str) -> None:
        """Appends the text of the page's word `index`."""
        end = self.length + len(text)
        self._parts.append(text)
        self._spans[index] = (self.length, end)
        self.length = end

    def finish(self) -> PageText:
        """The page's text."""
        return PageText("".join(self._parts), self._spans)


def collapse(text: str) -> str:
    """`text` on one line: white space at its ends dropped, any inner run of it one space."""
    return " ".join(text.split())
