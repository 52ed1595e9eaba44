"""How fast the queue moves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_MEMORY_S = 30.0  # what was seen so long ago counts a third
_MIN_STARTS = 8.0  # fewer tell nothing: a cold adapter, or one long prompt


class DrainRate:
    """What leaves the queue in a second in which anything waits.

    All sums fade, also while nothing waits: what was true of another load is forgotten within a
    minute or two.

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

    def wait_s(self, answers: float, tokens: float) -> float:
        """Until so many answers with so many tokens of prompt have left; 0 where unknown.

        Rows that become free let answers through, computed prompts tokens: where the two differ,
        the shorter wait holds, so that nobody is refused for a mixture that has changed.
        """
        if self._starts < _MIN_STARTS:
            return 0.0
        by_answers = answers / self._starts
        by_tokens = tokens / self._tokens if self._tokens else math.inf
        return min(by_answers, by_tokens) * self._busy_s
