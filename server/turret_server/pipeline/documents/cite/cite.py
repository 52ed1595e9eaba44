"""From an answer and pages to citations."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from turret_server.pipeline.documents.cite.nearness import Nearness
from turret_server.pipeline.documents.cite.parts import Part, parts
from turret_server.pipeline.documents.cite.readings import Boxes, readings
from turret_server.pipeline.documents.cite.search import MAX_TOKENS, Search
from turret_server.pipeline.documents.cite.spelling import Speller
from turret_server.pipeline.documents.cite.tokens import is_number, number_key, tokenize, weight
from turret_server.pipeline.documents.layout.text import PageText
from turret_server.pipeline.documents.page import Page

# What of a longer part stands on a page by chance is not cited: less than these.
_MIN_CHARS = 6
_MIN_DIGITS = 2
_MAX_OCCURRENCES_OF_A_WORD = 4

_SPACED_NUMBER = re.compile(r"(?<![\w.,])[-−]?[1-9]\d{0,2}(?: \d{3})+(?:[.,]\d+)?(?![\w.,]*\d)")


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


class _Piece(NamedTuple):
    """A token of the answer: what it is looked up as, where it stands, how sure the former is."""

    key: str
    start: int
    end: int
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
        question: of several occurrences, the one nearest to its words is cited.

    Returns:
        Citations in the order of the answer; their spans do not overlap.
    """
    boxes = [[word.box for word in page.words] for page in pages]
    found = [readings(*of) for of in zip(pages, texts, boxes, strict=True)]
    vocabulary = Counter(key for page in found for reading in page for key in reading.keys)
    speller = Speller(vocabulary)
    lines: list[tuple[Part, list[_Piece]]] = []
    left = MAX_TOKENS
    for part in parts(answer):
        pieces = list(_pieces(part, vocabulary, speller, left))
        left -= len(pieces)
        if pieces:
            lines.append((part, pieces))
        if left <= 0:
            break

    search = Search(found, (piece.key for _, pieces in lines for piece in pieces))
    asked = [token.key for token in tokenize(question)]
    choose = _Chooser(search, Nearness(found, boxes, asked))
    citations: list[Citation] = []
    for part, pieces in lines:
        needle = search.encode(piece.key for piece in pieces)
        for start, end in _runs(search.longest(needle)):
            run = pieces[start:end]
            page, words, number = choose(needle[start:end])
            if len(run) == len(pieces) or _says_something(run, number, asked):
                citations.append(_citation(part, run, pages[page], page, words, boxes[page]))
    return citations


class _Chooser:
    """Chooses among the occurrences of a run, once for each run."""

    def __init__(self, search: Search, nearness: Nearness):
        self._search, self._nearness = search, nearness
        self._chosen: dict[str, tuple[int, tuple[int, ...], int]] = {}

    def __call__(self, run: str) -> tuple[int, tuple[int, ...], int]:
        """Return page and words of the one nearest to the question, and how many there are."""
        if run not in self._chosen:
            occurrences = self._search.occurrences(run)
            nearest = max(occurrences, key=lambda place: self._nearness.of(*place))
            words = self._search.words(occurrences[nearest], len(run))
            self._chosen[run] = nearest[0], words, len(occurrences)
        return self._chosen[run]


def _pieces(
    part: Part, vocabulary: Mapping[str, int], speller: Speller, limit: int
) -> Iterator[_Piece]:
    # "1 234" may be two numbers. It is one where the pages have that one.
    text = _SPACED_NUMBER.sub(
        lambda match: (
            match[0].replace(" ", "\u00a0")
            if number_key(match[0].replace(" ", "")) in vocabulary
            else match[0]
        ),
        part.text,
    )
    tokens = tokenize(text)[:limit]
    at = 0
    while at < len(tokens):
        key, start, end = tokens[at]
        at += 1
        # A word may be hyphenated in the answer, and whole or hyphenated otherwise on the page.
        if at < len(tokens) and text[end : tokens[at].start] == "-":
            joined = key + tokens[at].key
            if joined in vocabulary and joined.isalpha():
                key, end = joined, tokens[at].end
                at += 1
        score = 1.0
        if key not in vocabulary and (similar := speller.nearest(key)) is not None:
            score = 1 - similar[1] / max(len(key), len(similar[0]))
            key = similar[0]
        yield _Piece(key, start, end, score)


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cover an answer by runs found on a page, each as long as can be, from left to right."""
    at = 0
    while at < len(lengths):
        if lengths[at]:
            yield at, at + lengths[at]
        at += lengths[at] or 1


def _says_something(run: Sequence[_Piece], occurrences: int, asked: Sequence[str]) -> bool:
    if all(piece.key in asked for piece in run):
        return False
    if any(is_number(piece.key) and len(piece.key) >= _MIN_DIGITS for piece in run):
        return True
    enough = sum(weight(piece.key) for piece in run) >= _MIN_CHARS
    return enough and (len(run) > 1 or occurrences <= _MAX_OCCURRENCES_OF_A_WORD)


def _citation(
    part: Part,
    run: Sequence[_Piece],
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
