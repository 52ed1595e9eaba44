"""The tokens of a page in the orders in which they may be read, and which words they are from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from turret_server.pipeline.documents.cite.tokens import CURRENCY, number_key, tokenize
from turret_server.pipeline.documents.layout.text import PageText
from turret_server.pipeline.documents.page import Page

_HYPHENS = ("-", "‐", "\u00ad")
# The words of "1 234 567,50"
_GROUPS_HEAD = re.compile(rf"[-−]?[{CURRENCY}]?[1-9]\d{{0,2}}")
_GROUP = re.compile(r"\d{3}")
_LAST_GROUP = re.compile(r"\d{3}(?:[.,]\d+)?")


@dataclass(slots=True)
class Reading:
    """Tokens in the order of a reading.

    Attributes:
        keys: of the tokens.
        words: for each token, indices of the page's words that it comes from; seldom more than one.
        after: words without a token, such as a dash, by the index of the token before them.
        hyphenated: keys of tokens with a hyphen behind them, at the end of their word.
    """

    keys: list[str] = field(default_factory=list)
    words: list[tuple[int, ...]] = field(default_factory=list)
    after: dict[int, tuple[int, ...]] = field(default_factory=dict)
    hyphenated: set[str] = field(default_factory=set)

    def add(self, word: int, keys: Sequence[str]) -> None:
        """Append the tokens of one word."""
        if keys:
            self.keys.extend(keys)
            self.words.extend([(word,)] * len(keys))
        elif last := len(self.keys):
            self.after[last - 1] = (*self.after.get(last - 1, ()), word)


def readings(page: Page, text: PageText) -> list[Reading]:
    """Return the tokens of a page, first in the order of its text.

    There may be two readings more: in the order of the source, which often keeps paragraphs and
    cells together and knows the direction of the script; and with groups of digits that may be one
    number as one. Words left out of the text have no part in any.
    """
    order = [at for at, (start, _) in enumerate(text.spans) if start >= 0]
    source = order.copy()
    order.sort(key=lambda at: text.spans[at][0])
    tokens = _tokens(page, order)
    plain = Reading()
    for at in order:
        plain.add(at, tokens[at])
        if tokens[at] and page.words[at].text.endswith(_HYPHENS):
            plain.hyphenated.add(tokens[at][-1])
    found = [plain]
    if source != order:
        found.append(Reading())
        for at in source:
            found[-1].add(at, tokens[at])
    numbers = _grouped_numbers(page, text, order)
    if not numbers:
        return found
    grouped = Reading()
    for at in order:
        if at not in numbers:
            grouped.add(at, tokens[at])
        elif (number := numbers[at]) is not None:
            grouped.keys.append(number[0])
            grouped.words.append(number[1])
    return [*found, grouped]


def _tokens(page: Page, order: Sequence[int]) -> dict[int, list[str]]:
    """Return each word's tokens; all are found in one pass, which is faster."""
    tokens: dict[int, list[str]] = {at: [] for at in order}
    following = iter(order)
    end, found = -1, []
    for token in tokenize("\n".join([page.words[at].text for at in order])):
        while token.start > end:
            at = next(following)
            end, found = end + 1 + len(page.words[at].text), tokens[at]
        found.append(token.key)
    return tokens


def _grouped_numbers(
    page: Page, text: PageText, order: Sequence[int]
) -> dict[int, tuple[str, tuple[int, ...]] | None]:
    """Return numbers whose groups of digits are words of their own, one space apart.

    By the first word of each: its key and its words; None for its other words.
    """
    found: dict[int, tuple[str, tuple[int, ...]] | None] = {}
    texts = [page.words[at].text for at in order]
    groups = {at for at, word in enumerate(texts) if _LAST_GROUP.fullmatch(word)}
    at = 0
    while groups and at < len(texts):
        end = at + 1
        if _GROUPS_HEAD.fullmatch(texts[at]):
            while end in groups and text.spans[order[end]][0] == text.spans[order[end - 1]][1] + 1:
                end += 1
                if not _GROUP.fullmatch(texts[end - 1]):
                    break
            key = number_key("".join(texts[at:end]))
            if end > at + 1 and key is not None:
                words = tuple(order[at:end])
                found |= dict.fromkeys(words)
                found[words[0]] = key, words
        at = end
    return found
