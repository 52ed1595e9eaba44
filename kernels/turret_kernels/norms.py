"""RMSNorm, with the residual addition that precedes it in a decoder."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension; statistics in float32.

    Args:
        x: [..., N].
        weight: [N].
        eps: added to the mean square.
    """
    return rms_norm_reference(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`residual += x` in place, then `rms_norm(residual)`.

    Args:
        x: [T, N] output of the previous sub-layer.
        residual: [T, N], updated in place.
        weight: [N].
        eps: added to the mean square.
    """
    residual += x
    return rms_norm_reference(residual, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As transformers' LlamaRMSNorm: normalised in float32, rounded, then scaled."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)
