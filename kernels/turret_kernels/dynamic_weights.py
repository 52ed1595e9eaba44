"""Dynamic logit fusion: how far a large model follows a small expert, chosen at every token.

Fan et al. 2024 (arXiv 2406.15480). With P the large model, Q the small base, Q_t its expert (their
softmaxes), d = log Q_t - log Q, and P_a proportional to P exp(a d), the weight minimises

    L(a) = [KL(P_a || P) - KL(Q_t || Q)]^2 + [KL(P || P_a) - KL(Q || Q_t)]^2,

anew for every token: the large model moves away from itself as far as the expert moved from its
base. The paper tries 21 values. Here the minimum is found to a relative 1e-3 in some five looks.

With phi(a) = log E_P[exp(a d)] - a E_P[d], which is convex and has phi(0) = phi'(0) = 0,

    KL(P || P_a) = phi(a)          KL(P_a || P) = a phi'(a) - phi(a)

so that one pass over the vocabulary yields both, and phi'' = Var_{P_a}(d) for interpolation. Both
grow with a. So the minimum lies between the roots of the two brackets, and on an interval L is at
least what is left of the brackets at their nearer ends: most intervals need no look. There may be
several minima, where d raises unlikely tokens; so those that remain are looked at, best first.

With several experts the paper lets one act at a time: each is searched alone, against the mean of
all targets (their sum of squares differs by a constant), and the least loss wins. Where a request
asks for `joint` weights, all of them act: see `joint_weights.py`.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.joint_weights import joint_weights
from turret_kernels.native import lib

if TYPE_CHECKING:
    from turret_kernels.fusion import Fusion, Members

    _Search = Callable[["_Curve", tuple[float, float], float], tuple[float, float]]

_EVALUATIONS = 24  # the limit: a search takes 4 to 7
_STEPS = 4  # the first of them; then it is looked at what other intervals promise
_HALVE = range(9, _EVALUATIONS, 2)  # after so many, interpolation has not helped
_TOLERANCE = 1e-3  # of the loss, relative
# Where an interval is looked at: evenly, and closer and closer to its ends.
_ENDS = 2.0 ** -np.arange(6, 13)
_MESH = np.unique(np.concatenate([np.linspace(0, 1, 42)[1:-1], _ENDS, 1 - _ENDS]))


def dynamic_weights(logits: Tensor, members: Members) -> Tensor:
    """The weights of all members, those of requests with a `limit` found for these logits.

    Such a request has the large model, the base, then the experts: 1, -a, and a for the expert
    that acts, 0 for the others; 0 <= a <= limit. An expert that equals its base gets 0. Tokens that
    one of the three bans are left out.

    Args:
        logits: float32 [R, V].
        members: see `turret_kernels.fusion`.

    Returns:
        float32 [M].
    """
    if not gpu.takes(logits):
        return _by_request(logits, members)
    from turret_kernels.gpu import dynamic_weights

    weights, first = dynamic_weights.dynamic_weights(logits, members), 0
    for fusion in members.fusions:
        last = first + len(fusion.rows)
        if fusion.grid or fusion.joint:  # no kernel of their own: one is for comparison, one rare
            found = _of_one(logits, fusion, _search)
            weights[first:last] = torch.tensor(found, device=weights.device)
        first = last
    return weights


def grid_weights(logits: Tensor, members: Members, step: float = 0.1) -> Tensor:
    """The same as published: the best of 0, step, 2 step, … limit, by the formulas."""
    return _by_request(logits, members, partial(_search_grid, step=step))


def _search_grid(
    curve: _Curve, kl: tuple[float, float], limit: float, step: float = 0.1
) -> tuple[float, float]:
    best = (0.0, math.inf)
    for a in np.arange(round(limit / step) + 1) * step:
        moved = (curve.log_p + float(a) * curve.d).log_softmax(-1)
        forward = (moved.exp() * (moved - curve.log_p)).sum().item()
        back = (curve.log_p.exp() * (curve.log_p - moved)).sum().item()
        loss = (forward - kl[0]) ** 2 + (back - kl[1]) ** 2
        best = min(best, (float(a), loss), key=lambda found: found[1])
    return best


def dynamic_weights_reference(logits: Tensor, members: Members) -> Tensor:
    """In float64, the best of 2001 values, then of 2001 around it."""

    def search(curve: _Curve, kl: tuple[float, float], limit: float) -> tuple[float, float]:
        def best_of(low: float, high: float) -> tuple[float, float]:
            grid = np.linspace(low, high, 2001).tolist()
            return min(((a, _loss(a, *curve.at(a)[:2], kl)) for a in grid), key=lambda f: f[1])

        step = limit / 2000
        a, _ = best_of(0.0, limit)
        return best_of(max(0.0, a - step), min(limit, a + step))

    return _by_request(logits.double(), members, search)


def _by_request(logits: Tensor, members: Members, search: _Search | None = None) -> Tensor:
    """Weights of all members; `search` takes an expert's curve, the targets and the limit."""
    weights: list[float] = []
    for fusion in members.fusions:
        given = fusion.limit <= 0
        weights += fusion.weights if given else _of_one(logits, fusion, search or _search)
    return torch.tensor(weights, dtype=torch.float32, device=logits.device)


def _of_one(logits: Tensor, fusion: Fusion, search: _Search) -> list[float]:
    """Weights of one request's members."""
    temperatures = fusion.temperatures or (1.0,) * len(fusion.rows)
    large, base, *experts = (
        logits[row] / t if t != 1 else logits[row]
        for row, t in zip(fusion.rows, temperatures, strict=True)
    )
    curves = [_Curve(large, base, expert, place) for place, expert in enumerate(experts)]
    forward, back = zip(*(curve.kl for curve in curves), strict=True)
    target = sum(forward) / len(curves), sum(back) / len(curves)
    find = _search_grid if fusion.grid else search
    found = [find(curve, target, fusion.limit) for curve in curves]
    acts = min(range(len(found)), key=lambda i: found[i][1])
    each = [found[i][0] if i == acts else 0.0 for i in range(len(experts))]
    if fusion.joint and len(experts) > 1:
        # All by the same weight: one curve more.
        together = torch.stack(experts).sum(0).sub_(base, alpha=len(experts) - 1)
        a, _ = search(_Curve(large, base, together), target, fusion.limit)
        starts = [[a] * len(experts), each]
        each = joint_weights(torch.stack([large, base, *experts]), target, fusion.limit, starts)
    return [1.0, -sum(each), *each]


class _Curve:
    """phi for one expert. One lives at a time in a thread and place: they share their memory.

    Attributes:
        log_p, d: [V'], of the tokens that none of the three bans; E_P[d] is taken off d.
        kl: KL(Q_t || Q), KL(Q || Q_t).
        curvature: phi''(0).
    """

    def __init__(self, large: Tensor, base: Tensor, expert: Tensor, place: int = 0) -> None:
        if min(x.amin() for x in (large, base, expert)) == float("-inf"):
            rows = torch.stack([large, base, expert])
            large, base, expert = rows[:, (rows > float("-inf")).all(0)]
        self._native = lib is not None and large.dtype == torch.float32 and large.is_cpu
        self._out = (ctypes.c_double * 4)()
        self._moments, (self.log_p, self._buffer) = _scratch.of(large, place).split([3, 2])
        _, self.d, square = self._moments
        torch.sub(expert, base, out=self.d).sub_(expert.amax() - base.amax())
        # Both are off by their maximum, as d is: log Q_t - log Q = d - offset.
        (_, log_t, mean_t), (_, log_q, mean_q) = self._expect(expert), self._expect(base)
        offset = log_t - log_q
        self.kl = max(mean_t - offset, 0.0), max(offset - mean_q, 0.0)
        top, log_p, mean = self._expect(large)
        torch.sub(large, top + log_p, out=self.log_p)
        self.d.sub_(mean)
        if not self._native:
            torch.mul(self.d, self.d, out=square)
        self.curvature = self.at(0.0)[2]

    def at(self, a: float) -> tuple[float, float, float]:
        """phi, phi', phi'' at a."""
        top, total, first, second = self._sums(self.log_p, a)
        mean = first / total
        return top + math.log(total), mean, max(second / total - mean * mean, 0.0)

    def _expect(self, x: Tensor) -> tuple[float, float, float]:
        """max x, log sum exp(x - max x), and the mean of d under softmax(x)."""
        top, total, first, _ = self._sums(x, 0.0)
        return top, math.log(total), first / total

    def _sums(self, x: Tensor, a: float) -> tuple[float, float, float, float]:
        """The maximum of x + a d, and the sums of e, e d, e d^2 with e = exp(x + a d - maximum)."""
        if self._native:
            assert lib is not None
            lib.turret_tilted_sums(self._out, x.data_ptr(), self.d.data_ptr(), len(x), a)
            top, total, first, second = self._out
            return top, total, first, second
        z = torch.add(x, self.d, alpha=a, out=self._buffer)
        top = z.amax()
        return top.item(), *(self._moments @ z.sub_(top).exp_()).tolist()


class _Scratch(threading.local):
    """Memory that stays: fresh pages would cost more than the sums."""

    def __init__(self) -> None:
        self._rows: dict[int, Tensor] = {}

    def of(self, x: Tensor, place: int) -> Tensor:
        """[5, V] for x [V]; the first row is 1."""
        rows = self._rows.get(place)
        if rows is None or rows.shape[1] != len(x) or rows.dtype != x.dtype:
            rows = self._rows[place] = torch.zeros(5, len(x), dtype=x.dtype, device=x.device)
            rows[0] = 1
        return rows


_scratch = _Scratch()


def _loss(a, phi, slope, kl: tuple[float, float]):
    return (a * slope - phi - kl[0]) ** 2 + (phi - kl[1]) ** 2


def _search(curve: _Curve, kl: tuple[float, float], limit: float) -> tuple[float, float]:
    """The a in [0, limit] of least loss, and that."""
    known = [(0.0, 0.0, 0.0, curve.curvature)]
    if sum(kl) > 0 and curve.curvature > 0:
        # Both KLs are curvature a^2 / 2 at first.
        a = min(math.sqrt(sum(kl) / curve.curvature), limit)
        known.append((limit, *curve.at(limit)))
        for _ in range(_STEPS):
            if min(abs(a - found[0]) for found in known) < 2e-3:
                break
            known.append((a, *curve.at(a)))
            a = min(max(a - _step(*known[-1], kl), 0.0), limit)
    while len(known) < _EVALUATIONS:
        known.sort()
        a = _next(np.array(known).T, kl, halve=len(known) in _HALVE)
        if a is None:
            break
        known.append((a, *curve.at(a)))
    losses = [_loss(a, phi, slope, kl) for a, phi, slope, _ in known]
    best = int(np.argmin(losses))
    return known[best][0], losses[best]


def _step(a: float, phi: float, slope: float, curvature: float, kl: tuple[float, float]) -> float:
    """Of Gauss-Newton: what to take off a."""
    one, two = a * slope - phi - kl[0], phi - kl[1]
    scale = (a * curvature) ** 2 + slope**2
    return (one * a * curvature + two * slope) / scale if scale > 0 else 0.0


def _next(known: NDArray[np.float64], kl: tuple[float, float], halve: bool) -> float | None:
    """Where the loss is worth evaluating, None if it promises nowhere to become less.

    Args:
        known: [4, n]: a, phi, phi', phi'', from left to right.
        kl: the targets.
        halve: take the middle of the interval, whatever interpolation says.
    """
    a, phi, slope, _ = known
    brackets = np.stack([a * slope - phi - kl[0], phi - kl[1]])
    least = np.maximum(brackets[:, :-1], 0) ** 2 + np.minimum(brackets[:, 1:], 0) ** 2
    best = _loss(a, phi, slope, kl).min()
    # float32 sums are off by some 1e-6, which leaves short intervals nothing to tell.
    goal = best - max(_TOLERANCE * best, 2e-6 * math.sqrt(best)) - 1e-8 * sum(kl) ** 2 - 1e-11
    long = (np.diff(a) > 2e-3) | ((np.diff(brackets).max(0) > 0.02) & (np.diff(a) > 1e-5))
    open_ = np.flatnonzero(long & (least.sum(0) < goal))
    if not len(open_):
        return None
    left, right = known[:, open_, None], known[:, open_ + 1, None]
    x = left[0] + (right[0] - left[0]) * _MESH
    value, derivative, value_error, slope_error = _interpolate(left, right)
    guess = _loss(x, value, derivative, kl)
    # What it could be if both brackets were off by the errors.
    one = np.abs(x * derivative - value - kl[0]) - x * slope_error - value_error
    two = np.abs(value - kl[1]) - value_error
    hope = np.maximum(one, 0) ** 2 + np.maximum(two, 0) ** 2
    i = int(hope.min(1).argmin())
    if hope[i].min() >= goal:
        return None
    j = int(guess[i].argmin())
    sure = guess[i, j] < goal and guess[i, j] - hope[i, j] < (best - guess[i, j]) / 2
    return float(x[i, j] if sure and not halve else (left[0, i, 0] + right[0, i, 0]) / 2)


def _interpolate(left: NDArray, right: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """phi and phi' on the mesh of each interval, and how far they may be off.

    Quintic Hermite, kept to what convexity allows; the error is its distance to the cubic.
    """
    h, t = right[0] - left[0], _MESH
    p0, m0, c0 = left[1], left[2] * h, left[3] * h * h
    p1, m1, c1 = right[1], right[2] * h, right[3] * h * h
    rise, turn, bend = p1 - p0 - m0 - c0 / 2, m1 - m0 - c0, (c1 - c0) / 2
    a3, a4, a5 = 10 * rise - 4 * turn + bend, 7 * turn - 15 * rise - 2 * bend, 6 * rise - 3 * turn
    a5 = a5 + bend
    value = p0 + t * (m0 + t * (c0 / 2 + t * (a3 + t * (a4 + t * a5))))
    slope = (m0 + t * (c0 + t * (3 * a3 + t * (4 * a4 + t * 5 * a5)))) / h
    b2, b3 = 3 * (p1 - p0) - 2 * m0 - m1, m0 + m1 - 2 * (p1 - p0)
    value_error = np.abs(value - (p0 + t * (m0 + t * (b2 + t * b3))))
    slope_error = np.abs(slope - (m0 + t * (2 * b2 + t * 3 * b3)) / h)
    tangents = np.maximum(p0 + m0 * t, p1 - m1 * (1 - t))
    value = np.clip(value, tangents, np.maximum(p0 + (p1 - p0) * t, tangents))
    return value, np.clip(slope, left[2], right[2]), value_error, slope_error
