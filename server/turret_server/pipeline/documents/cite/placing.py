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
        if not runs:
            return
        end, paths = self._follow(needle, runs, 0, min_tokens=1)
        if (runs[0][0], runs[end - 1][1]) == (0, len(needle)):
            yield self._placed(needle, 0, len(needle), paths, key)
            return
        at = 0
        while at < len(runs):
            # In a text that is not all there, single words stand below each other by chance.
            end, paths = self._follow(needle, runs, at, min_tokens=2)
            yield self._placed(needle, runs[at][0], runs[end - 1][1], paths, key)
            at = end

    def _placed(self, needle: str, start: int, end: int, paths: list[Words], key: str) -> Placed:
        if not paths:
            (page, words), number = self._choose(needle[start:end], key)
            return Placed(start, end, page, words, number)
        by_place = {(page, words[0]): words for page, words in reversed(paths)}
        place = self._nearest(list(by_place), key)
        return Placed(start, end, place[0], by_place[place], len(paths))

    def _follow(
        self, needle: str, runs: Sequence[tuple[int, int]], at: int, *, min_tokens: int
    ) -> tuple[int, list[Words]]:
        """Follow a cell over its lines, from one run to those right behind it.

        Returns:
            The index behind the last run of the cell, and the words that all of them together may
            be; none where it is one run alone.
        """
        end, paths = at + 1, list[Words]()
        while end < len(runs) and runs[end][0] == runs[end - 1][1]:
            if any(stop - start < min_tokens for start, stop in runs[end - 1 : end + 1]):
                break
            above = paths or self._some(needle[slice(*runs[end - 1])])
            longer = self._joined(above, self._some(needle[slice(*runs[end])]))
            if not longer:
                break
            end, paths = end + 1, longer
        return end, paths

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
