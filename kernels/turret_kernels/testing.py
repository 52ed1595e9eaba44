"""Helpers for parity tests of kernels."""

from __future__ import annotations

import torch


def poisoned(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Memory that nobody has written: NaN everywhere, so that every read of it shows."""
    return torch.full(shape, float("nan"), dtype=dtype)


def exact(x: torch.Tensor) -> torch.Tensor:
    """An input for the reference: float32 as float64, so that it has no error of its own.

    16-bit inputs stay what they are: the reference then rounds where kernels round.
    """
    return x.double() if x.dtype == torch.float32 else x
