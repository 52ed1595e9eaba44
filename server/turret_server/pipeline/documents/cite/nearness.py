"""Which of several occurrences stands nearest to the words of a question."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from turret_server.pipeline.documents.cite.readings import Reading

Boxes: TypeAlias = Sequence[Sequence[float]]  # left, top, right and bottom, of each word
Place: TypeAlias = tuple[int, int]  # a page and one of its words

_MAX_HITS = 64  # occurrences of question words on a page; those of rare words go first
_MAX_CHOICES = 256  # that are made with care; later ones fall on the first occurrence
_AWAY = 0.1  # what distance along a row or column counts, against distance across


class Nearness:
    """Chooses among places.

    A value stands beside its label or below it, also at the other end of a row. So a place's
    distance to a question word is that across the row or column which both stand in, and a tenth of
    that along it, in heights of a line. Rare words weigh more.

    Args:
        pages: each with its readings.
        boxes: of each page's words.
    """

    def __init__(self, pages: Sequence[Sequence[Reading]], boxes: Sequence[Boxes]):
        self._pages, self._boxes = pages, boxes
        self._hits: dict[tuple[str, ...], dict[int, _Hits]] = {}
        self._choices_left = _MAX_CHOICES

    @cached_property
    def _places(self) -> dict[str, list[Place]]:
        places: dict[str, list[Place]] = defaultdict(list)
        for page, found in enumerate(self._pages):
            for key, words in zip(found[0].keys, found[0].words, strict=True):
                places[key].append((page, words[0]))
        return places

    def has_any(self, question: Collection[str]) -> bool:
        """Whether a page has a token of the question."""
        return any(key in self._places for key in question)

    def nearest(self, places: Sequence[Place], question: tuple[str, ...]) -> Place:
        """Return the place nearest to the question's tokens; the first of equals."""
        if self._choices_left == 0:
            return places[0]
        if question not in self._hits:
            self._hits[question] = self._find(question)
        if not (hits := self._hits[question]):
            return places[0]
        self._choices_left -= 1
        of_page: dict[int, list[Place]] = defaultdict(list)
        for place in places:
            of_page[place[0]].append(place)
        best, highest = places[0], 0.0
        for page, some in of_page.items():
            if page in hits:
                scores = hits[page].scores([self._boxes[page][word] for _, word in some])
                at = int(scores.argmax())
                if scores[at] > highest:
                    best, highest = some[at], float(scores[at])
        return best

    def _find(self, question: tuple[str, ...]) -> dict[int, _Hits]:
        counts = {key: len(self._places[key]) for key in question if key in self._places}
        total = sum(len(readings[0].keys) for readings in self._pages)
        found: dict[int, list[tuple[float, list[int]]]] = defaultdict(list)
        left = Counter[int]()
        for key in sorted(counts, key=lambda key: counts[key]):  # stable: equals as in the question
            weight = math.log(1 + total / counts[key])
            words: dict[int, list[int]] = defaultdict(list)
            for page, word in self._places[key]:
                if left[page] < _MAX_HITS:
                    left[page] += 1
                    words[page].append(word)
            for page, some in words.items():
                found[page].append((weight, some))
        return {page: _Hits(self._boxes[page], some) for page, some in found.items()}


class _Hits:
    """Question words on one page."""

    def __init__(self, boxes: Boxes, found: Sequence[tuple[float, Sequence[int]]]):
        words = [word for _, some in found for word in some]
        self._boxes = np.array([boxes[word] for word in words])  # [H, 4], by question word
        self._starts = np.cumsum([0, *(len(some) for _, some in found[:-1])])
        self._weights = np.array([weight for weight, _ in found])
        self._height = float(np.median(self._boxes[:, 3] - self._boxes[:, 1])) or 1.0

    def scores(self, boxes: Boxes) -> NDArray[np.float64]:
        """Return how near boxes [P, 4] are.  # [P]"""
        places = np.array(boxes)[:, None]  # [P, 1, 4]
        # Negative where they overlap, seen from above or from the side.
        gaps = np.maximum(
            self._boxes[:, :2] - places[:, :, 2:], places[:, :, :2] - self._boxes[:, 2:]
        ).clip(min=0)  # [P, H, 2]
        distance = (gaps.min(axis=2) + _AWAY * gaps.max(axis=2)) / self._height
        nearest = np.minimum.reduceat(distance, self._starts, axis=1)
        return (self._weights / (1 + nearest)).sum(axis=1)
