"""Helpers for parity tests of kernels."""

from __future__ import annotations

import torch


def poisoned(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Memory that nobody has written: NaN everywhere, so that every read of it shows."""
    return torch.full(shape, float("nan"), dtype=dtype)
