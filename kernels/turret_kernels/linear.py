"""`y = x W^T + b` with a weight laid out once for the device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(slots=True)
class LinearWeight:
    """A weight as `linear` wants it; made by `pack_linear`.

    Attributes:
        data: the weight; its layout is private to this file.
        out_features: rows of W.
        in_features: columns of W.
    """

    data: Tensor
    out_features: int
    in_features: int


def pack_linear(weight: Tensor) -> LinearWeight:
    """Lay out `weight` [out, in] for `linear`. The caller may drop the original."""
    return LinearWeight(weight.contiguous(), *weight.shape)


def linear(x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> Tensor:
    """`x` [T, in] -> [T, out] in the dtype of `x`; accumulates in float32."""
    return F.linear(x, weight.data, bias)
