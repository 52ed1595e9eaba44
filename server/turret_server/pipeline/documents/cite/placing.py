"""Which words of the pages each run of an answer is taken to be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from turret_server.pipeline.documents.cite.joins import Grid
from turret_server.pipeline.documents.cite.nearness import Nearness
from turret_server.pipeline.documents.cite.search import Search
from turret_server.pipeline.documents.cite.tokens import tokenize
from turret_server.pipeline.documents.layout.text import PageText

_MAX_QUESTION_TOKENS = 256
# Of runs that may go on in another line: occurrences looked at, of each and of all.
_MAX_OCCURRENCES = 32
_MAX_LOOKS = 4096

_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")

Words: TypeAlias = tuple[int, tuple[int, ...]]  # of one page


class Placed(NamedTuple):
    """A run of an answer and its words.

    Attributes:
        start: first of the answer's tokens.
        end: behind the last.
        page: index of the page.
        words: indices of the page's words.
        occurrences: how many places it was chosen from.
    """

    start: int
    end: int
    page: int
    words: tuple[int, ...]
    occurrences: int


class Placer:
    """Covers an answer by runs that stand on the pages, and chooses the place of each.

    Args:
        search: over the pages.
        nearness: to the question.
        texts: of the pages.
        asked: the question's tokens.
    """

    def __init__(
        self,
        search: Search,
        nearness: Nearness,
        texts: Sequence[PageText],
        asked: tuple[str, ...],
    ):
        self._search, self._nearness, self._texts, self._asked = search, nearness, texts, asked
        self._grids: dict[int, Grid] = {}
        self._chosen: dict[tuple[str, str], tuple[Words, int]] = {}
        self._looks_left = _MAX_LOOKS

    def place(self, needle: str, key: str) -> Iterator[Placed]:
        """Yield the runs of a part of the answer that stand on a page, from left to right.

        Each is as long as can be; runs that go on in the line below, in the same cell, are one.

        Args:
            needle: the part's tokens, as `Search.encode` has them.
            key: of a JSON value. It is what is asked for, if a page has a word of it.
        """
        runs = list(_cover(self._search.longest(needle)))
        at = 0
        while at < len(runs):
            start, end = runs[at]
            at += 1
            paths: list[Words] = []
            while at < len(runs) and runs[at][0] == end:
                above = paths or self._some(needle[start:end])
                longer = self._joined(above, self._some(needle[slice(*runs[at])]))
                if not longer:
                    break
                paths, end = longer, runs[at][1]
                at += 1
            if paths:
                by_place = {(page, words[0]): words for page, words in reversed(paths)}
                place = self._nearest(list(by_place), key)
                yield Placed(start, end, place[0], by_place[place], len(paths))
            else:
                (page, words), number = self._choose(needle[start:end], key)
                yield Placed(start, end, page, words, number)

    def _choose(self, run: str, key: str) -> tuple[Words, int]:
        if (run, key) not in self._chosen:
            occurrences = self._search.occurrences(run)
            page, word = self._nearest(list(occurrences), key)
            words = self._search.words(occurrences[page, word], len(run))
            self._chosen[run, key] = (page, words), len(occurrences)
        return self._chosen[run, key]

    def _nearest(self, places: list[tuple[int, int]], key: str) -> tuple[int, int]:
        if len(places) == 1:
            return places[0]
        named = question_keys(_CAMEL_CASE.sub(" ", key))
        asked = named if self._nearness.has_any(named) else self._asked
        return self._nearness.nearest(places, asked)

    def _some(self, run: str) -> list[Words]:
        if self._looks_left <= 0:
            return []
        found = list(self._search.occurrences(run).items())[:_MAX_OCCURRENCES]
        self._looks_left -= len(found)
        return [(page, self._search.words(at, len(run))) for (page, _), at in found]

    def _joined(self, above: Sequence[Words], below: Sequence[Words]) -> list[Words]:
        joined: list[Words] = []
        for page, words in below:
            for other, before in above:
                self._looks_left -= 1
                if page == other and self._grid(page).goes_on(before, words):
                    joined.append((page, (*before, *words)))
                    break
        return joined

    def _grid(self, page: int) -> Grid:
        if page not in self._grids:
            self._grids[page] = Grid(self._texts[page])
        return self._grids[page]


def question_keys(question: str) -> tuple[str, ...]:
    """Return the tokens of a question, each once."""
    return tuple(dict.fromkeys(token.key for token in tokenize(question)))[:_MAX_QUESTION_TOKENS]


def _cover(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(lengths):
        if lengths[at]:
            yield at, at + lengths[at]
        at += lengths[at] or 1
