"""From an answer and pages to citations."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

from turret_server.pipeline.documents.cite.nearness import Boxes, Nearness
from turret_server.pipeline.documents.cite.parts import Part, parts
from turret_server.pipeline.documents.cite.pieces import Lookup, Piece
from turret_server.pipeline.documents.cite.placing import Placer, question_keys
from turret_server.pipeline.documents.cite.readings import readings
from turret_server.pipeline.documents.cite.search import MAX_TOKENS, Search
from turret_server.pipeline.documents.cite.tokens import is_number, weight
from turret_server.pipeline.documents.layout.text import PageText
from turret_server.pipeline.documents.page import Page

# What of a longer part stands on a page by chance is not cited: less than these.
_MIN_CHARS = 6
_MIN_DIGITS = 2
_MAX_OCCURRENCES_OF_A_WORD = 4


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
    """Find the words that an answer rests on.

    The longest runs of the answer's tokens (`tokens`) that follow each other on a page are cited,
    line by line of the answer. Where all of a line or value is found it is cited whatever it is;
    of a longer text, only what says something: numbers, rare words, several words. Words that no
    page has are looked up as the word that differs in a letter or two; numbers never are.

    Args:
        answer: plain text, or JSON, of which each value is cited by itself.
        pages: what was shown to the model.
        texts: their layouts.
        question: of several occurrences, the one nearest to its words is cited; for a JSON value
            to those of its key.

    Returns:
        Citations in the order of the answer; their spans do not overlap.
    """
    found = [readings(page, text) for page, text in zip(pages, texts, strict=True)]
    vocabulary: dict[str, None] = {}
    for reading in chain.from_iterable(found):
        vocabulary.update(dict.fromkeys(reading.keys))
    lookup = Lookup(vocabulary, set().union(*(of_page[0].hyphenated for of_page in found)))
    lines: list[tuple[Part, list[Piece]]] = []
    left = MAX_TOKENS
    for part in parts(answer):
        pieces = list(lookup.pieces(part.text, left))[:left]
        left -= len(pieces)
        lines.append((part, pieces))
        if left == 0:
            break

    search = Search(found, (piece.key for _, pieces in lines for piece in pieces))
    boxes = [[word.box for word in page.words] for page in pages]
    asked = question_keys(question)
    placer = Placer(search, Nearness(found, boxes), texts, asked)
    known = frozenset(asked)
    citations: list[Citation] = []
    for part, pieces in lines:
        needle = search.encode(piece.key for piece in pieces)
        for start, end, number, words, occurrences in placer.place(needle, part.key):
            run = pieces[start:end]
            if len(run) == len(pieces) or _says_something(run, occurrences, known):
                page = pages[number]
                citations.append(_citation(part, run, page, number, words, boxes[number]))
    return citations


def _says_something(run: Sequence[Piece], occurrences: int, known: Collection[str]) -> bool:
    if all(piece.key in known for piece in run):
        return False
    if any(is_number(piece.key) and len(piece.key) >= _MIN_DIGITS for piece in run):
        return True
    enough = sum(weight(piece.key) for piece in run) >= _MIN_CHARS
    return enough and (len(run) > 1 or occurrences <= _MAX_OCCURRENCES_OF_A_WORD)


def _citation(
    part: Part,
    run: Sequence[Piece],
    page: Page,
    number: int,
    words: tuple[int, ...],
    boxes: Boxes,
) -> Citation:
    start, end = _with_signs(part.text, run[0].start, run[-1].end)
    lefts, tops, rights, bottoms = zip(*[boxes[at] for at in words], strict=True)
    size = sum(len(piece.key) for piece in run)
    return Citation(
        start=part.places[start],
        end=part.places[end],
        page=number,
        words=words,
        box=(min(lefts), min(tops), max(rights), max(bottoms)),
        text=" ".join([page.words[at].text for at in words]),
        score=sum(piece.score * len(piece.key) for piece in run) / size,
    )


def _with_signs(text: str, start: int, end: int) -> tuple[int, int]:
    """Take in a currency or per cent sign beside a number."""
    if start and unicodedata.category(text[start - 1]) == "Sc":
        start -= 1
    while end < len(text) and (text[end] == "%" or unicodedata.category(text[end]) == "Sc"):
        end += 1
    return start, end
