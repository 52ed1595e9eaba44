"""Objectives that make a request good: `ttft:500` means a first token within 500 ms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from turret_server.errors import BadRequest
from turret_server.loadtest.record import Record

# Seconds of one finished request, None where it has no such number.
_METRICS: dict[str, Callable[[Record], float | None]] = {
    "ttft": lambda record: record.ttft_s,
    # The request's own 99th percentile: a user sees the stall, not the mean.
    "itl": lambda record: float(np.percentile(record.gaps_s, 99)) if record.gaps_s else 0.0,
    "tpot": lambda record: record.tpot_s,
    "e2e": lambda record: record.e2e_s,
}


@dataclass(frozen=True, slots=True)
class Objective:
    """An upper limit on one latency of a request.

    Attributes:
        metric: "ttft", "itl" (99th percentile of the request's gaps), "tpot" or "e2e".
        limit_ms: the largest value that still counts as good.
    """

    metric: str
    limit_ms: float

    def met_by(self, record: Record) -> bool:
        """Tell whether a request without error meets this objective.

        A latency that the request does not have fails it: an answer that was not streamed has no
        time to first token to be proud of.
        """
        value_s = _METRICS[self.metric](record)
        return value_s is not None and value_s * 1e3 <= self.limit_ms

    def __str__(self) -> str:
        return f"{self.metric}:{self.limit_ms:g}"


def parse_objective(text: str) -> Objective:
    """Read `METRIC:MILLISECONDS`.

    Raises:
        BadRequest: unknown metric, or a limit that is not a positive number.
    """
    metric, _, limit = text.partition(":")
    try:
        limit_ms = float(limit)
    except ValueError:
        limit_ms = 0.0
    if metric not in _METRICS or not 0 < limit_ms < float("inf"):
        raise BadRequest(
            f"Objective {text!r} not understood",
            f"metrics are {', '.join(_METRICS)}; the limit is in milliseconds",
            "Write for example --goodput ttft:500",
        )
    return Objective(metric, limit_ms)
