"""Arrival times of an open loop: Poisson, gamma with a burstiness, and bursts of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from turret_server.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """An arrival process whose long-run rate is `rate_per_s` whatever its shape.

    Attributes:
        rate_per_s: requests per second.
        burstiness: shape of the gamma-distributed gaps. 1 is Poisson, below 1 clusters arrivals,
            above 1 spaces them out evenly (the meaning that vLLM's `--burstiness` has).
        burst_size: requests that arrive at the same instant; the gaps lie between bursts.
    """

    rate_per_s: float
    burstiness: float = 1.0
    burst_size: int = 1

    def validate(self) -> None:
        """Refuse rates and shapes that describe no process.

        Raises:
            BadRequest: a number is not positive.
        """
        for flag, value in (
            ("--rate", self.rate_per_s),
            ("--burstiness", self.burstiness),
            ("--burst-size", self.burst_size),
        ):
            if not 0 < value < float("inf"):
                raise BadRequest(f"{flag} {value!r} is out of range", "it must be positive")

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        """Yield arrival times in seconds from the start, without end and never decreasing."""
        scale_s = self.burst_size / self.rate_per_s / self.burstiness
        now_s = 0.0
        while True:
            for _ in range(self.burst_size):
                yield now_s
            now_s += float(rng.gamma(self.burstiness, scale_s))
