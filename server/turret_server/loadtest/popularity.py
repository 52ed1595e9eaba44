"""Which model name a request asks for: uniform, round-robin, or Zipf by rank."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from turret_server.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Popularity:
    """How requests spread over `n` names.

    Attributes:
        kind: "uniform", "round-robin" or "zipf".
        alpha: exponent of the Zipf law, P(rank k) proportional to k ** -alpha.
    """

    kind: str = "uniform"
    alpha: float = 0.0

    def weights(self, n: int) -> np.ndarray:
        """Share of each of `n` names, first is most popular; [n] float64, sums to 1."""
        raw = np.arange(1, n + 1, dtype=np.float64) ** -self.alpha
        return raw / raw.sum()

    def choices(self, n: int, rng: np.random.Generator) -> Iterator[int]:
        """Yield indices below `n` without end."""
        if self.kind == "round-robin":
            for index in count():
                yield index % n
        # Inverse transform on our own cumulative sum: one uniform draw a request, so that the
        # k-th request depends on the seed and k alone.
        cumulative = np.cumsum(self.weights(n))
        while True:
            yield min(int(np.searchsorted(cumulative, rng.random(), side="right")), n - 1)

    def __str__(self) -> str:
        return f"zipf:{self.alpha:g}" if self.kind == "zipf" else self.kind


def parse_popularity(text: str) -> Popularity:
    """Read `uniform`, `round-robin` or `zipf:ALPHA`.

    Raises:
        BadRequest: any other text, or an ALPHA that is not positive.
    """
    if text in ("uniform", "round-robin"):
        return Popularity(text)
    kind, _, alpha = text.partition(":")
    try:
        exponent = float(alpha)
    except ValueError:
        exponent = 0.0
    if kind != "zipf" or not 0 < exponent < float("inf"):
        raise BadRequest(
            f"Popularity {text!r} not understood",
            "it is none of the known forms",
            "Use uniform, round-robin or zipf:ALPHA with ALPHA above 0, such as zipf:1.1",
        )
    return Popularity("zipf", exponent)
