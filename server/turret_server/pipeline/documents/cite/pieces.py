"""The tokens of an answer, as the pages write them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from turret_server.pipeline.documents.cite.spelling import Speller
from turret_server.pipeline.documents.cite.tokens import number_key, tokenize

_SPACED_NUMBER = re.compile(r"(?<![\w.,])[-−]?[1-9]\d{0,2}(?: \d{3})+(?:[.,]\d+)?(?![\w.,]*\d)")
_MAX_WORD_CHARS = 64


class Piece(NamedTuple):
    """A token of an answer: what it is looked up as, where it stands, how like the former it is."""

    key: str
    start: int
    end: int
    score: float = 1.0


class Lookup:
    """Turns an answer's tokens into those of the pages.

    Args:
        vocabulary: the pages' tokens; their order decides between words equally like another.
        hyphenated: those that have a hyphen behind them.
    """

    def __init__(self, vocabulary: Collection[str], hyphenated: Collection[str]):
        self._vocabulary, self._hyphenated = vocabulary, hyphenated
        self._speller = Speller(vocabulary)

    def pieces(self, text: str, limit: int) -> Iterator[Piece]:
        """Yield the tokens of a text, at most `limit` of them."""
        text = _SPACED_NUMBER.sub(lambda match: self._one_number(match[0]), text)
        tokens = tokenize(text)[:limit]
        at = 0
        while at < len(tokens):
            key, start, end = tokens[at]
            at += 1
            # Hyphenated in the answer, whole on the page.
            if at < len(tokens) and text[end : tokens[at].start] == "-":
                joined = key + tokens[at].key
                if joined in self._vocabulary and joined.isalpha():
                    key, end = joined, tokens[at].end
                    at += 1
            yield from self._known(key, start, end)

    def _one_number(self, number: str) -> str:
        """Join "1 234", which may be two numbers, where the pages have that one."""
        known = number_key(number.replace(" ", "")) in self._vocabulary
        return number.replace(" ", "\u00a0") if known else number

    def _known(self, key: str, start: int, end: int) -> Iterator[Piece]:
        if key in self._vocabulary:
            yield Piece(key, start, end)
        elif size := self._hyphen_in(key):
            middle = min(start + size, end)
            yield Piece(key[:size], start, middle)
            yield Piece(key[size:], middle, end)
        elif (similar := self._speller.nearest(key)) is not None:
            word, edits = similar
            yield Piece(word, start, end, 1 - edits / max(len(key), len(word)))
        else:
            yield Piece(key, start, end)

    def _hyphen_in(self, key: str) -> int:
        """Return after how many letters a word is hyphenated on the pages; 0 for nowhere."""
        if not self._hyphenated or not key.isalpha() or len(key) > _MAX_WORD_CHARS:
            return 0
        for size in range(2, len(key) - 1):
            if key[:size] in self._hyphenated and key[size:] in self._vocabulary:
                return size
        return 0
