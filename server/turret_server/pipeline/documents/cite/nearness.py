"""How near a page's words stand to the words of the question."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from turret_server.pipeline.documents.cite.readings import Boxes, Reading

_MAX_HITS = 64  # occurrences of question words on a page; those of rare words go first
_AWAY = 0.1  # what distance counts along a row or column, against distance across


class Nearness:
    """Scores for words. A page's are made when the first is asked for.

    A value stands beside its label or below it, also at the other end of a row. So distance along
    the row or column that both stand in counts a tenth of distance across.

    Args:
        pages: each with its readings.
        boxes: of each page's words.
        question: the keys of its tokens.
    """

    def __init__(
        self,
        pages: Sequence[Sequence[Reading]],
        boxes: Sequence[Boxes],
        question: Sequence[str],
    ):
        self._pages, self._boxes = pages, boxes
        counts = Counter[str]()
        terms = set(question)
        for found in pages:
            counts.update(key for key in found[0].keys if key in terms)
        # Equally rare words in the order of the question.
        self._terms = sorted(
            (key for key in dict.fromkeys(question) if counts[key]), key=lambda key: counts[key]
        )
        total = sum(len(found[0].keys) for found in pages)
        self._weights = {key: math.log(1 + total / counts[key]) for key in self._terms}
        self._scores: dict[int, NDArray[np.float64]] = {}

    def of(self, page: int, word: int) -> float:
        """Return a word's score; 0 on pages without a word of the question."""
        if page not in self._scores:
            self._scores[page] = self._page_scores(page)
        return float(self._scores[page][word])

    def _page_scores(self, page: int) -> NDArray[np.float64]:
        boxes = np.array(self._boxes[page], dtype=np.float64).reshape(-1, 4)
        scores = np.zeros(len(boxes))
        hits: dict[str, list[int]] = defaultdict(list)
        reading = self._pages[page][0]
        wanted = set(self._terms)
        for key, words in zip(reading.keys, reading.words, strict=True):
            if key in wanted:
                hits[key].append(words[0])
        height = float(np.median(boxes[:, 3] - boxes[:, 1])) if len(boxes) else 0.0
        left = _MAX_HITS
        for key in self._terms:
            found = hits[key][:left]
            if found:
                distance = _distance(boxes, boxes[found]) / (height or 1.0)
                scores += self._weights[key] / (1 + distance.min(axis=1))
                left -= len(found)
        return scores


def _distance(words: NDArray[np.float64], hits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of each word [W, 4] to each hit [H, 4].  # [W, H]"""
    gaps = [
        np.maximum(
            np.maximum(hits[:, low] - words[:, None, high], words[:, None, low] - hits[:, high]), 0
        )
        for low, high in ((0, 2), (1, 3))
    ]
    return np.minimum(*gaps) + _AWAY * np.maximum(*gaps)
