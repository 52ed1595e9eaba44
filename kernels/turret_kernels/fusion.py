"""Logit fusion: several members (models, adapters, prompts) give one request its next token.

Every published way is one of two formulas over the members i of a request, of logits M_i at
temperature tau_i, with weights w_i:

    linear:   z = sum_i w_i M_i / tau_i
    mixture:  z = log sum_i w_i softmax(M_i / tau_i)

| method | members and weights |
|---|---|
| proxy-tuning (Liu et al. 2024) | base 1, expert a, anti-expert -a |
| DExperts (2021) | the same, `nucleus` 0.9 |
| contrastive decoding (Li et al. 2023) | expert 1, amateur -1 (its temperature), `plausible` 0.1 |
| classifier-free guidance, context-aware decoding | without 1 - g, with g |
| product, mixture of experts | w_i; `mixture` for the latter |
| dynamic logit fusion (arXiv 2406.15480) | large 1, base -a, expert a; a from `dynamic_weights` |

Whether a member's logits are normalised first makes no difference to a linear z, up to a constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.dynamic_weights import dynamic_weights

_HEADS = (256, 1024)  # tokens that a nucleus is first looked for in


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """How the members of one request are combined.

    Attributes:
        rows: the members' rows of the logits; one may come again. The first judges plausibility.
            With dynamic weights they are the large model, the small base, then one or more small
            experts.
        weights: one per member; more than 0 in a mixture. 0 leaves a member out. With dynamic
            weights they are not read.
        temperatures: of the members, 1 if empty.
        mixture: of probabilities; otherwise of logits.
        plausible: tokens stay that the first member finds at least so likely, relative to its
            likeliest (alpha in contrastive decoding, eq. 2); 0 keeps all.
        nucleus: tokens stay that are among the likeliest of this probability by the first member
            (DExperts filters its base so); 1 keeps all.
        limit: the largest dynamic weight (the paper's grid ends at 2); 0: weights as given.
        grid: dynamic weights by the published grid, for comparison.
        joint: dynamic weights of all experts at once; otherwise one acts per token, as published.
    """

    rows: tuple[int, ...]
    weights: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = ()
    mixture: bool = False
    plausible: float = 0.0
    nucleus: float = 1.0
    limit: float = 0.0
    grid: bool = False
    joint: bool = False

    def __post_init__(self) -> None:
        size = len(self.rows)
        if self.limit > 0 and size < 3:
            raise ValueError("dynamic weights need a large model, a base and an expert")
        if self.limit <= 0 and len(self.weights) != size:
            raise ValueError(f"{size} members have {len(self.weights)} weights")
        if self.temperatures and len(self.temperatures) != size:
            raise ValueError(f"{size} members have {len(self.temperatures)} temperatures")
        if self.mixture and (self.limit > 0 or min(self.weights) < 0):
            raise ValueError("a mixture has weights of its own, none below 0")


@dataclass(frozen=True, slots=True)
class Members:
    """The members of Q requests, M in all, request after request.

    Attributes:
        fusions: what the requests want; what the tensors hold, on the host.
        first: int32 [Q + 1]: members first[q] to first[q + 1] - 1 are request q's.
        request: int32 [M].
        row: int32 [M] of the logits.
        weight: float32 [M]; 0 with dynamic weights.
        temperature: float32 [M].
        mixture: int32 [Q], 0 or 1.
        plausible: float32 [Q].
        limit: float32 [Q].
    """

    fusions: tuple[Fusion, ...]
    first: Tensor
    request: Tensor
    row: Tensor
    weight: Tensor
    temperature: Tensor
    mixture: Tensor
    plausible: Tensor
    limit: Tensor

    @classmethod
    def of(cls, fusions: Sequence[Fusion], device: torch.device) -> Members:
        """The tables of some requests, sent to where their logits are in one transfer."""
        sizes = [len(f.rows) for f in fusions]
        columns = [
            np.cumsum([0, *sizes], dtype=np.int32),
            np.arange(len(fusions), dtype=np.int32).repeat(sizes),
            np.array([row for f in fusions for row in f.rows], dtype=np.int32),
            np.array([w for f in fusions for w in _weights(f)], dtype=np.float32),
            np.array([t for f in fusions for t in _temperatures(f)], dtype=np.float32),
            np.array([f.mixture for f in fusions], dtype=np.int32),
            np.array([f.plausible for f in fusions], dtype=np.float32),
            np.array([f.limit for f in fusions], dtype=np.float32),
        ]
        # Each begins at a multiple of 16 bytes: kernels are compiled once for that.
        padded = [np.pad(c.view(np.int32), (0, -len(c) % 4)) for c in columns]
        table = gpu.to_device(torch.from_numpy(np.concatenate(padded)), device)
        tensors = [
            part[: len(c)].view(torch.float32 if c.dtype == np.float32 else torch.int32)
            for c, part in zip(columns, table.split([len(p) for p in padded]), strict=True)
        ]
        return cls(tuple(fusions), *tensors)


def fuse(logits: Tensor, members: Members) -> tuple[Tensor, Tensor]:
    """One row of logits per request, from those of its members.

    A token that a member with a weight bans (-inf: it is not in that member's vocabulary, say) is
    banned, in a mixture only if all of them ban it.

    Args:
        logits: float32 [R, V], of all members of all requests.
        members: Q requests, beside the logits.

    Returns:
        float32 [Q, V], up to a constant per row; and the weights, float32 [M], for those requests
        that asked for dynamic ones as found.
    """
    weights = members.weight
    if any(f.limit > 0 for f in members.fusions):
        weights = dynamic_weights(logits, members)
    if gpu.takes(logits):
        from turret_kernels.gpu import fusion

        fused = fusion.fuse(logits, members, weights)
        _keep_nuclei(fused, logits, members.fusions)
        return fused, weights
    fused = torch.empty((len(members.fusions), logits.shape[1]), device=logits.device)
    given = weights.tolist()
    for out, fusion in zip(fused, members.fusions, strict=True):
        mine, given = given[: len(fusion.rows)], given[len(fusion.rows) :]
        _fuse_one(out, logits, fusion, mine)
    _keep_nuclei(fused, logits, members.fusions)
    return fused, weights


def fuse_reference(logits: Tensor, members: Members, weights: Tensor) -> Tensor:
    """In float64, by the formulas; float64 [Q, V]."""
    fused, given = [], weights.tolist()
    for fusion in members.fusions:
        mine, given = given[: len(fusion.rows)], given[len(fusion.rows) :]
        terms = [
            (w, logits[row].double() / t)
            for w, row, t in zip(mine, fusion.rows, _temperatures(fusion), strict=True)
        ]
        used = [(w, x) for w, x in terms if w != 0]
        if fusion.mixture:
            z = torch.stack([w * x.softmax(-1) for w, x in used]).sum(0).log()
        else:
            z = torch.stack([w * x for w, x in used]).sum(0)
            z[torch.stack([x == float("-inf") for _, x in used]).any(0)] = float("-inf")
        judge = terms[0][1].softmax(-1)
        z[judge < fusion.plausible * judge.max()] = float("-inf")
        values = judge.sort(descending=True).values
        inside = values[values.cumsum(0) - values < fusion.nucleus]
        z[judge < inside[-1]] = float("-inf")
        fused.append(z)
    return torch.stack(fused)


def _weights(fusion: Fusion) -> tuple[float, ...]:
    return (0.0,) * len(fusion.rows) if fusion.limit > 0 else fusion.weights


def _temperatures(fusion: Fusion) -> tuple[float, ...]:
    return fusion.temperatures or (1.0,) * len(fusion.rows)


def _fuse_one(out: Tensor, logits: Tensor, fusion: Fusion, weights: list[float]) -> None:
    """Member after member into `out` [V]."""
    temperatures = _temperatures(fusion)
    used = [
        (w, logits[row], t)
        for w, row, t in zip(weights, fusion.rows, temperatures, strict=True)
        if w != 0
    ]
    if fusion.mixture:
        out.fill_(float("-inf"))
        for w, x, t in used:
            torch.logaddexp(out, (x / t).log_softmax(-1).add_(math.log(w)), out=out)
    else:
        out.zero_()
        for w, x, t in used:
            out.add_(x, alpha=w / t)
        for _, x, _ in used:
            if x.amin() == float("-inf"):
                out.masked_fill_(x == float("-inf"), float("-inf"))
    if fusion.plausible > 0:
        judge = logits[fusion.rows[0]]
        least = judge.amax() + temperatures[0] * math.log(fusion.plausible)
        out.masked_fill_(judge < least, float("-inf"))


def _keep_nuclei(fused: Tensor, logits: Tensor, fusions: Sequence[Fusion]) -> None:
    """Ban in `fused` [Q, V] what lies outside the nucleus of a first member."""
    for out, fusion in zip(fused, fusions, strict=True):
        if fusion.nucleus < 1:
            judge = logits[fusion.rows[0]] / _temperatures(fusion)[0]
            out.masked_fill_(judge < _nucleus_end(judge, fusion.nucleus), float("-inf"))


def _nucleus_end(x: Tensor, probability: float) -> Tensor:
    """The least logit [] of the smallest set of likeliest tokens with this probability."""
    total = x.logsumexp(-1)
    for size in _HEADS if x.is_cpu else ():  # a GPU sorts faster than it tells that few will do
        if size < len(x):
            head = x.topk(size).values
            if (head - total).exp().sum() > probability:
                return _last_inside(head, total, probability)
    return _last_inside(x.sort(descending=True).values, total, probability)


def _last_inside(values: Tensor, total: Tensor, probability: float) -> Tensor:
    shares = (values - total).exp()
    before = shares.cumsum(-1) - shares
    # 1 at least: rounding may leave the likeliest token a probability above 1.
    count = (before < probability).sum().clamp(min=1)
    return values.gather(0, (count - 1)[None])[0]
