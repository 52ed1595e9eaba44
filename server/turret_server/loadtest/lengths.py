"""Distributions of prompt and output lengths: fixed, uniform, lognormal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turret_server.errors import BadRequest

if TYPE_CHECKING:
    import numpy as np

_FORMS = "N, fixed:N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA or lognormal:MEDIAN:SIGMA:MAX"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution over positive whole numbers (words or tokens).

    Attributes:
        kind: "fixed", "uniform" or "lognormal".
        low: the value (fixed), the smallest value (uniform) or the median (lognormal).
        high: the largest value drawn; None means unbounded (lognormal only).
        sigma: standard deviation of the logarithm (lognormal only).
    """

    kind: str
    low: int
    high: int | None = None
    sigma: float = 0.0

    def sample(self, rng: np.random.Generator) -> int:
        """Draw one length, at least 1."""
        if self.kind == "fixed":
            return self.low
        if self.kind == "uniform":
            assert self.high is not None
            return int(rng.integers(self.low, self.high, endpoint=True))
        drawn = max(1, round(float(rng.lognormal(math.log(self.low), self.sigma))))
        return drawn if self.high is None else min(drawn, self.high)

    def __str__(self) -> str:
        if self.kind == "fixed":
            return str(self.low)
        if self.kind == "uniform":
            return f"uniform:{self.low}:{self.high}"
        tail = "" if self.high is None else f":{self.high}"
        return f"lognormal:{self.low}:{self.sigma:g}{tail}"


def parse_lengths(text: str) -> Lengths:
    """Read a length distribution as written on the command line.

    Raises:
        BadRequest: `text` has none of the known forms, or its numbers make no sense.
    """
    kind, *fields = text.split(":") if ":" in text else ("fixed", text)
    try:
        if kind == "fixed" and len(fields) == 1:
            lengths = Lengths("fixed", int(fields[0]))
        elif kind == "uniform" and len(fields) == 2:
            lengths = Lengths("uniform", int(fields[0]), int(fields[1]))
        elif kind == "lognormal" and len(fields) in (2, 3):
            cap = int(fields[2]) if len(fields) == 3 else None
            lengths = Lengths("lognormal", int(fields[0]), cap, float(fields[1]))
        else:
            raise ValueError("unknown form")
    except ValueError as error:
        raise BadRequest(f"Length {text!r} not understood", str(error), f"Use {_FORMS}") from error
    in_order = lengths.high is None or lengths.low <= lengths.high
    if lengths.low < 1 or not in_order or not 0 <= lengths.sigma < 10:
        raise BadRequest(
            f"Length {text!r} is out of range",
            "lengths start at 1, LOW and MEDIAN are at most HIGH and MAX, 0 <= SIGMA < 10",
            f"Use {_FORMS}",
        )
    return lengths
