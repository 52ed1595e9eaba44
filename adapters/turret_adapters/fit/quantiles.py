"""Exact quantiles of magnitudes that are never held all at once.

The bits of non-negative floats, read as integers, are ordered as the floats are. So a histogram
over the upper half of the bits finds the value's upper half, and a second pass over the same data
its lower half: 32768 counts and 65536, whatever the number of values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_UPPER, _LOWER = 1 << 15, 1 << 16  # the sign of a magnitude is 0


def _bits(x: Tensor) -> Tensor:
    """int32 [n], ascending with |x|."""
    return x.detach().abs().float().flatten().contiguous().view(torch.int32)


def _value(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


class Magnitudes:
    """|x| of everything added, to 7 binary digits."""

    def __init__(self) -> None:
        self._counts = torch.zeros(_UPPER, dtype=torch.int64)

    @property
    def count(self) -> int:
        """Values added."""
        return int(self._counts.sum())

    def add(self, x: Tensor) -> None:
        """Count the values of a tensor of any shape."""
        self._counts += torch.bincount(_bits(x) >> 16, minlength=_UPPER)

    def locate(self, share: float) -> tuple[int, int]:
        """The bin that holds the quantile, and which of its values it is, from 1.

        The quantile is the smallest value that `share` of all values do not exceed.
        """
        rank = max(1, math.ceil(share * self.count))
        ends = self._counts.cumsum(0)
        index = int(torch.searchsorted(ends, rank))
        return index, rank - int(ends[index] - self._counts[index])

    def quantile(self, share: float) -> float:
        """Approximately; inside a bin, values are taken to be spread evenly. 0 for the share 0."""
        if share <= 0:
            return 0.0
        index, rank = self.locate(share)
        low, high = _value(index << 16), _value((index + 1) << 16)
        return low + (high - low) * rank / int(self._counts[index])


class Refined:
    """The exact quantile, by a second pass over what `coarse` has counted.

    Args:
        coarse: of the same values.
        share: of the values that do not exceed it.
    """

    def __init__(self, coarse: Magnitudes, share: float):
        self._index, self._rank = coarse.locate(share)
        self._counts = torch.zeros(_LOWER, dtype=torch.int64)

    def add(self, x: Tensor) -> None:
        """Count those values of a tensor that may be it."""
        bits = _bits(x)
        inside = bits[bits >> 16 == self._index] & (_LOWER - 1)
        self._counts += torch.bincount(inside, minlength=_LOWER)

    @property
    def value(self) -> float:
        """The quantile, as float32 has it."""
        lower = int(torch.searchsorted(self._counts.cumsum(0), self._rank))
        return _value(self._index << 16 | lower)
