"""From logits to tokens: filters and seeded draws, for a whole batch at once.

A draw is the inverse of the cumulative distribution, in the order of the vocabulary, at one uniform
number per row. The number depends on the request's seed and the position alone, so that a request
draws the same tokens whatever batch it runs in.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.native import lib


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    """One token per row.

    Filters apply in the order of vLLM and transformers: temperature, then top-k, then top-p over
    what is left, then min-p relative to the most likely token.

    Settings may be on the host where the logits are on a GPU: see `gpu/sampling.py`. Only the
    tokens need to return.

    Args:
        logits: float32 [R, V]; -inf bans a token.
        temperature: float32 [R]; 0 takes the likeliest token, the first of equals.
        top_k: int64 [R], 0 = off.
        top_p: float32 [R], in (0, 1].
        min_p: float32 [R], 0 = off.
        uniform: float64 [R], in [0, 1).

    Returns:
        int64 [R].
    """
    logits = logits.contiguous()
    if gpu.takes(logits):
        from turret_kernels.gpu import sampling

        return sampling.sample(logits, temperature, top_k, top_p, min_p, uniform)
    if lib is None or logits.device.type != "cpu":
        settings = (temperature, top_k, top_p, min_p, uniform)
        return sample_reference(logits, *(gpu.to_device(s, logits.device) for s in settings))
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64)
    lib.turret_sample(
        tokens.data_ptr(),
        logits.data_ptr(),
        rows,
        vocab,
        temperature.data_ptr(),
        top_k.data_ptr(),
        top_p.data_ptr(),
        min_p.data_ptr(),
        uniform.data_ptr(),
    )
    return tokens


def sample_reference(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    """Sort everything, in float64."""
    greedy = logits.argmax(-1)
    heat = torch.where(temperature > 0, temperature, 1.0)
    probs = torch.softmax(logits.double() / heat[:, None], dim=-1)
    values, order = probs.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(values.shape[1], device=values.device)[None]
    inside = (top_k[:, None] == 0) | (rank < top_k[:, None])
    values = torch.where(inside, values, 0.0)
    before = values.cumsum(-1) - values  # probability of all that are likelier
    keep = inside & (before < top_p[:, None].double() * values.sum(-1, keepdim=True))
    keep |= (top_p[:, None] >= 1) & inside
    keep &= values >= min_p[:, None].double() * values[:, :1]
    keep[:, 0] = True
    kept = torch.zeros_like(values).scatter(1, order, torch.where(keep, values, 0.0))
    cumulative = kept.cumsum(-1)
    drawn = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1)
    last = kept.shape[1] - 1 - (kept > 0).flip(-1).int().argmax(-1)  # rounding at the end
    return torch.where(temperature > 0, torch.minimum(drawn, last), greedy)


def uniforms(seeds: list[int], positions: list[int]) -> Tensor:
    """A float64 in [0, 1) per (seed, position): SplitMix64, two rounds."""
    z = _mix(np.array([seed % 2**64 for seed in seeds], dtype=np.uint64))
    z = _mix(z ^ np.array(positions, dtype=np.uint64))
    return torch.from_numpy((z >> np.uint64(11)) * 2.0**-53)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A round of SplitMix64, modulo 2^64."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
