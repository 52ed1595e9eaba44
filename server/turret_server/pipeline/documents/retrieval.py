"""The order in which several documents, or pages, stand in a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from turret_server.pipeline.documents.relevance import bm25, ranked

Order = Literal["given", "edges"]


def ordered(texts: Sequence[str], question: str, order: Order) -> list[int]:
    """Return the indices of texts in the order they are to be shown.

    Args:
        texts: one for each document.
        question: decides what is relevant.
        order: "given" keeps the order; "edges" puts the most relevant first, the second last, the
            third second and so on, for models overlook most in the middle of a long prompt (Liu et
            al., 2023, "Lost in the Middle").
    """
    if order == "given":
        return list(range(len(texts)))
    best_first = ranked(bm25(texts, question))
    return best_first[0::2] + best_first[1::2][::-1]
