"""The table of cosines and sines that rotates queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from turret_server.errors import StartupError
from turret_server.models.rope_config import RopeConfig


def rope_table(rope: RopeConfig, head_dim: int, max_positions: int) -> Tensor:
    """Cosines and sines of every position, computed in float32 in transformers' order.

    One row per position serves every sequence, whatever its length, so the frequencies must not
    depend on the length. With `dynamic` (NTK-aware) scaling they do, but only beyond the original
    context: up to it the frequencies are the plain ones, exactly; beyond it transformers changes
    them with every new token and leaves the cached keys rotated by the old ones, so that its
    result depends on how the sequence was fed. That is refused rather than imitated.

    Args:
        rope: the scaling.
        head_dim: width of a head, even.
        max_positions: rows; the longest sequence to be served, in tokens.

    Returns:
        float32 [max_positions, head_dim]: cosines of the half dimensions, then sines.

    Raises:
        StartupError: `dynamic` scaling and more positions than the original context.
    """
    if rope.type == "dynamic" and max_positions > rope.original_max_positions:
        raise StartupError(
            f"a context of {max_positions} tokens cannot be served",
            "the model's dynamic RoPE scaling changes with the length beyond "
            f"{rope.original_max_positions} tokens, which a cache of rotated keys cannot follow",
            f"Lower --max-model-len to {rope.original_max_positions}, or set a static scaling "
            "(linear or yarn) in config.json.",
        )
    position = torch.arange(max_positions, dtype=torch.float32)
    angle = position[:, None] * inverse_frequencies(rope, head_dim)
    return torch.cat([angle.cos(), angle.sin()], dim=-1) * rope.attention_factor


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair of dimensions: float32 [head_dim / 2]."""
    period = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    plain = 1.0 / period
    match rope.type:
        case "linear":  # position interpolation, arXiv:2306.15595
            return plain / rope.factor
        case "llama3":
            return _llama3(rope, plain)
        case "yarn":
            return _yarn(rope, plain, 1.0 / (rope.factor * period))
        case _:
            return plain


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Long waves slower by `factor`, short ones kept, a ramp over frequency between (Llama 3.1)."""
    turns = rope.original_max_positions / (2 * math.pi / plain)  # over the original context
    span = rope.high_freq_factor - rope.low_freq_factor
    smooth = (turns - rope.low_freq_factor) / span
    between = (1 - smooth) * plain / rope.factor + smooth * plain
    slowed = torch.where(turns < rope.low_freq_factor, plain / rope.factor, between)
    return torch.where(turns > rope.high_freq_factor, plain, slowed)


def _yarn(rope: RopeConfig, plain: Tensor, slowed: Tensor) -> Tensor:
    """As llama3, with the ramp over the dimension (YaRN, arXiv:2309.00071, section 3.2)."""
    half = plain.shape[0]

    def dimension(turns: float) -> float:
        """Which pair of dimensions turns this often over the original context."""
        quotient = rope.original_max_positions / (turns * 2 * math.pi)
        return half * math.log(quotient) / math.log(rope.theta)

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    # The upper border is clamped to 2 * half - 1, not to half - 1, in the authors' code and since.
    low, high = max(low, 0), min(high, 2 * half - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    keep = 1 - ((torch.arange(half, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return slowed * (1 - keep) + plain * keep
