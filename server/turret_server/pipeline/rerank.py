"""Reranking as requests and recipes ask for it: several answers are drawn, the best returned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RerankSpec:
    """How the answers to return are chosen.

    Attributes:
        candidates: answers to draw for each prompt.
        scorer: the name of the model that scores them; None goes by log-probability per token.
        return_scores: tell the scores of all.
    """

    candidates: int
    scorer: str | None = None
    return_scores: bool = False
