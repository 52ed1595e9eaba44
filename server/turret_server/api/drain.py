"""How fast the queue moves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_MEMORY_S = 30.0  # what was seen so long ago counts a third
_MIN_STARTS = 8.0  # fewer tell nothing: a cold adapter, or one long prompt


class DrainRate:
    """Tokens that leave the queue in a second in which anything waits.

    It holds whatever the bottleneck is, prompts to compute or rows to become free. Both sums fade,
    also while nothing waits: what was true of another load is forgotten within a minute or two.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._starts = self._tokens = self._busy_s = 0.0

    def follow(self, *, waits: bool) -> None:
        """Tell, at every change, whether anything has waited since the last one."""
        now = self._clock()
        elapsed_s, self._at = now - self._at, now
        fade = math.exp(-elapsed_s / _MEMORY_S)
        self._starts *= fade
        self._tokens *= fade
        self._busy_s = self._busy_s * fade + (elapsed_s if waits else 0.0)

    def started(self, tokens: float) -> None:
        """An answer with so many tokens of prompt has left the queue."""
        self._starts += 1
        self._tokens += tokens

    @property
    def tokens_per_s(self) -> float | None:
        """The rate; None where too little was seen."""
        if self._starts < _MIN_STARTS or self._busy_s <= 0 or self._tokens <= 0:
            return None
        return self._tokens / self._busy_s
