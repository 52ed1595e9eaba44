"""From an answer and pages to citations."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from turret_server.pipeline.documents.cite.nearness import Nearness
from turret_server.pipeline.documents.cite.parts import Part, parts
from turret_server.pipeline.documents.cite.readings import Boxes, readings
from turret_server.pipeline.documents.cite.search import MAX_TOKENS, Search
from turret_server.pipeline.documents.cite.spelling import Speller
from turret_server.pipeline.documents.cite.tokens import is_number, number_key, tokenize, weight
from turret_server.pipeline.documents.layout.text import PageText
from turret_server.pipeline.documents.page import Page

_MAX_QUESTION_TOKENS = 256

# What of a longer part stands on a page by chance is not cited: less than these.
_MIN_CHARS = 6
_MIN_DIGITS = 2
_MAX_OCCURRENCES_OF_A_WORD = 4

_SPACED_NUMBER = re.compile(r"(?<![\w.,])[-−]?[1-9]\d{0,2}(?: \d{3})+(?:[.,]\d+)?(?![\w.,]*\d)")

_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")


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
        question: of several occurrences, the one nearest to its words is cited; for a JSON value
            to those of its key.

    Returns:
        Citations in the order of the answer; their spans do not overlap.
    """
    boxes = [[word.box for word in page.words] for page in pages]
    found = [readings(*of) for of in zip(pages, texts, boxes, strict=True)]
    vocabulary: dict[str, None] = {}  # not a set: the order of words decides between equals
    for reading in chain.from_iterable(found):
        vocabulary.update(dict.fromkeys(reading.keys))
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
    asked = _keys(question)
    known = frozenset(asked)
    choose = _Chooser(search, Nearness(found, boxes), asked)
    citations: list[Citation] = []
    for part, pieces in lines:
        needle = search.encode(piece.key for piece in pieces)
        for start, end in _runs(search.longest(needle)):
            run = pieces[start:end]
            page, words, number = choose(needle[start:end], part.key)
            if len(run) == len(pieces) or _says_something(run, number, known):
                citations.append(_citation(part, run, pages[page], page, words, boxes[page]))
    return citations


class _Chooser:
    """Chooses among the occurrences of a run, once for each run and key."""

    def __init__(self, search: Search, nearness: Nearness, asked: tuple[str, ...]):
        self._search, self._nearness, self._asked = search, nearness, asked
        self._chosen: dict[tuple[str, str], tuple[int, tuple[int, ...], int]] = {}

    def __call__(self, run: str, key: str) -> tuple[int, tuple[int, ...], int]:
        """Return page and words of the occurrence that is cited, and how many there are.

        Args:
            run: what was found.
            key: of the JSON value; it is what is asked for, if the pages have a word of it.
        """
        if (run, key) not in self._chosen:
            occurrences = self._search.occurrences(run)
            nearest = next(iter(occurrences))
            if len(occurrences) > 1:
                named = _keys(_CAMEL_CASE.sub(" ", key))
                asked = named if self._nearness.has_any(named) else self._asked
                nearest = self._nearness.nearest(list(occurrences), asked)
            words = self._search.words(occurrences[nearest], len(run))
            self._chosen[run, key] = nearest[0], words, len(occurrences)
        return self._chosen[run, key]


def _keys(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(token.key for token in tokenize(text)))[:_MAX_QUESTION_TOKENS]


def _pieces(
    part: Part, vocabulary: Collection[str], speller: Speller, limit: int
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


def _says_something(run: Sequence[_Piece], occurrences: int, known: Collection[str]) -> bool:
    if all(piece.key in known for piece in run):
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
