"""Which words of the pages an answer rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turret_server.pipeline.documents.layout.text import PageText
from turret_server.pipeline.documents.page import Page


@dataclass(frozen=True, slots=True)
class Citation:
    """A span of an answer, and where it stands on the pages.

    Attributes:
        start: of the span, in characters of the answer.
        end: exclusive.
        page: index into the pages.
        words: indices into the page's words, in the order of the answer.
        box: left, top, right and bottom around the words, in the page's unit.
        text: the words, joined by spaces.
        score: 1 where the words are the same but for case, punctuation and how numbers are
            written; less where letters differ.
    """

    start: int
    end: int
    page: int
    words: tuple[int, ...]
    box: tuple[float, float, float, float]
    text: str
    score: float


def cite(
    answer: str, pages: Sequence[Page], texts: Sequence[PageText], question: str = ""
) -> list[Citation]:
    """Return citations in the order of the answer; spans do not overlap.

    Args:
        answer: plain text, or JSON, of which each value is cited.
        pages: what was shown to the model.
        texts: their layouts.
        question: of several occurrences, the one nearest to its words is cited.
    """
    wanted = answer.strip()
    if not wanted:
        return []
    for at, page in enumerate(pages):
        for index, word in enumerate(page.words):
            if word.text == wanted:
                start = answer.index(wanted)
                end = start + len(wanted)
                return [Citation(start, end, at, (index,), word.box, word.text, 1.0)]
    return []
