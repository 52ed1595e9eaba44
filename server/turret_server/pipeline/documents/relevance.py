"""How relevant texts are to a question: BM25 (Robertson and Zaragoza, 2009), in any language."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

# Scripts written without spaces: each character counts as a word.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Japanese, Chinese
)

_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
_K1, _B = 1.2, 0.75


def words(text: str) -> list[str]:
    """Return the words of a text, case folded, without punctuation."""
    return _WORD.findall(text.casefold())


def bm25(texts: Sequence[str], question: str) -> list[float]:
    """Return a score for each text, 0 where it has no word of the question. Linear in the texts.

    The weight of a word, its inverse document frequency, is squared: so the words that questions
    are made of ("what is the") count little, without a list of them, which would be one language's.
    """
    terms = set(words(question))
    counts: list[Counter[str]] = []
    lengths: list[int] = []
    for text in texts:
        found = words(text)
        lengths.append(len(found))
        counts.append(Counter(word for word in found if word in terms))
    mean = sum(lengths) / len(texts) if any(lengths) else 1.0
    having = Counter(term for count in counts for term in count)
    weights = {
        term: math.log(1 + (len(texts) - number + 0.5) / (number + 0.5)) ** 2
        for term, number in having.items()
    }
    return [
        # fsum, so that the order of a set's items does not change the score.
        math.fsum(
            weights[term] * number * (_K1 + 1) / (number + _K1 * (1 - _B + _B * length / mean))
            for term, number in count.items()
        )
        for count, length in zip(counts, lengths, strict=True)
    ]


def ranked(scores: Sequence[float]) -> list[int]:
    """Return the indices by falling score, the first of equals first."""
    return sorted(range(len(scores)), key=lambda at: -scores[at])
