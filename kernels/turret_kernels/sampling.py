"""From logits to tokens: filters and seeded draws, for a whole batch at once.

A draw is the inverse of the cumulative distribution at one uniform number per row, taken in
descending order of probability. The number depends on the request's seed and the position alone,
so that a request draws the same tokens whatever batch it runs in.
"""

from __future__ import annotations

import torch
from torch import Tensor


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

    Args:
        logits: float32 [R, V]; -inf bans a token.
        temperature: float32 [R], positive.
        top_k: int64 [R], 0 = off.
        top_p: float32 [R], in (0, 1].
        min_p: float32 [R], 0 = off.
        uniform: float64 [R], in [0, 1).

    Returns:
        int64 [R].
    """
    scaled = logits / temperature[:, None]
    probs = torch.softmax(scaled, dim=-1)
    values, order = _candidates(probs, top_k, top_p, min_p)
    rank = torch.arange(values.shape[1], device=values.device)[None]
    mass = values.double().cumsum(-1)
    before = mass - values  # probability of all that are likelier
    limit = torch.where(top_k > 0, top_k, values.shape[1])[:, None]
    inside_k = rank < limit
    # top-p counts within what top-k left; the token that crosses the threshold stays.
    kept_mass = torch.where(inside_k, values, 0).double().sum(-1, keepdim=True)
    if not bool((top_k > 0).any()):
        kept_mass = torch.ones_like(kept_mass)
    keep = inside_k & (before < top_p[:, None].double() * kept_mass)
    keep &= values >= min_p[:, None] * values[:, :1]
    keep[:, 0] = True
    kept = torch.where(keep, values.double(), 0.0)
    cumulative = kept.cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    index = (cumulative <= target).sum(-1).clamp(max=values.shape[1] - 1)
    # Rounding may step past the last kept token.
    last = values.shape[1] - 1 - keep.flip(-1).int().argmax(-1)
    return order.gather(1, torch.minimum(index, last)[:, None])[:, 0]


def _candidates(
    probs: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of each row in descending order: all that any filter could keep.

    A token below `(1 - p) / V` cannot be in the nucleus: everything that small weighs less than
    `1 - p` together. The longest list any row needs decides, so the vocabulary is rarely sorted.
    """
    vocab = probs.shape[1]
    floor = (1 - top_p.double()).clamp(min=0) / vocab
    floor = torch.maximum(floor, min_p.double() * probs.amax(-1))
    counts = (probs >= floor[:, None]).sum(-1)
    # With top-k the nucleus is a share of the mass that top-k left: all of it must be there.
    counts = torch.where(top_k > 0, top_k, counts)
    return probs.topk(int(counts.max().clamp(min=1, max=vocab)), dim=-1)


def uniforms(seeds: list[int], positions: list[int]) -> Tensor:
    """A float64 in [0, 1) per (seed, position): SplitMix64, two rounds."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    draws = [mix(mix(s & mask) ^ p) >> 11 for s, p in zip(seeds, positions, strict=True)]
    return torch.tensor(draws, dtype=torch.float64) / 2**53
