"""Adapters made of adapters, from their compiled low-rank components, site by site.

With `D = b.T @ a` the change [out, in] that a source makes at a site, and w its weight:

    sum              sum(w D), exact: the factors side by side
    svd              sum(w D), cut to `rank` by singular values
    magnitude_prune  sum(w top(D)), top keeping the `density` largest magnitudes
    ties             top(D); the sign of their sum is elected; per entry, the sum of w top(D) that
                     agree, divided by their number (Yadav et al., 2023)
    dare             sum(w m D / density), m drawn with probability `density` (Yu et al., 2024)
    dare_ties        as ties, on m D / density
    breadcrumbs      sum(w D), of each row without the `gamma` largest, the next `density` of them
                     (Davari and Belilovsky, 2024)

The last five work on the dense D, as the `_svd` variants of PEFT's `add_weighted_adapter` do, and
cut the result to `rank`: the factors themselves are no task vectors (A and B could change signs
together). What the cut drops is reported. Two more repeat, for compatibility, what others compute
from the published factors A, B and scale s; both contain products of one adapter's B with the
other's A:

    peft-linear      A = sum(sign(w s) sqrt|w s| A), B = sum(sqrt|w s| B)
    lorax-linear     A = sum(w A), B = sum(w B), times the scale of the first
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from turret_adapters.components import LowRank
from turret_adapters.derivation import Derivation
from turret_adapters.errors import AdapterUnsupported, listing, quote
from turret_adapters.spec import Program, Site

_EXACT_SVD = 256  # largest shorter side; beyond it, an exact one takes too long for every site


@dataclass(frozen=True, slots=True)
class _Branch:
    """What one source adds at one site: `weight * b.T @ a`, float32."""

    weight: float
    a: Tensor
    b: Tensor
    scale: float | None  # that the source published, and that `b` contains

    def delta(self) -> Tensor:
        """Without the weight, [out, in]."""
        return self.b.T @ self.a


_Factors = tuple[Tensor, Tensor, float, float]  # a, b, squared norms: of the change, of the rest
_Merge = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def compose(programs: Sequence[Program], derivation: Derivation) -> Program:
    """The derived adapter.

    Args:
        programs: the compiled sources, in the derivation's order.
        derivation: what to make of them.

    Raises:
        AdapterUnsupported: a source has components that cannot be merged, or the method's
            conditions do not hold.
    """
    sites = _by_site(programs, derivation)
    random = np.random.Generator(np.random.PCG64(derivation.seed))
    components: list[LowRank] = []
    worst, whole, rest = (0.0, ""), 0.0, 0.0
    for site in sorted(sites):
        a, b, norm, lost = _merge(sites[site], derivation, random, site)
        components.append(LowRank(site, a.contiguous(), b.contiguous()))
        worst = max(worst, (math.sqrt(lost / norm) if norm else 0.0, str(site)))
        whole, rest = whole + norm, rest + lost
    notes = [f"derived by {derivation.method} from {len(programs)} adapters"]
    if worst[0] > 1e-5:
        notes.append(
            f"its rank drops {math.sqrt(rest / whole):.1%} of the change, at worst "
            f"{worst[0]:.1%} ({worst[1]})"
        )
    return Program("derived", tuple(components), programs[0].base_model, tuple(notes))


def _merge(
    branches: list[_Branch], derivation: Derivation, random: np.random.Generator, site: Site
) -> _Factors:
    method, density = derivation.method, derivation.density
    rank = derivation.rank or sum(branch.a.shape[0] for branch in branches)
    if method == "sum":
        a = torch.cat([branch.weight * branch.a for branch in branches])
        return a, torch.cat([branch.b for branch in branches]), 1.0, 0.0
    if method in ("peft-linear", "lorax-linear"):
        return _linear(branches, method, site)
    if method == "svd":
        return _cut_sum(branches, rank)
    deltas = [branch.delta() for branch in branches]
    if method in ("dare", "dare_ties"):
        deltas = [_drop(delta, density, random) for delta in deltas]
    elif method == "breadcrumbs":
        deltas = [_breadcrumbs(delta, density, derivation.gamma) for delta in deltas]
    else:
        deltas = [_largest(delta, density) for delta in deltas]
    merge = _elect if method in ("ties", "dare_ties") else _add
    return _cut(merge(deltas, [branch.weight for branch in branches]), rank, random)


def _add(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([w * delta for w, delta in zip(weights, deltas, strict=True)]).sum(0)


def _elect(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """TIES after trimming. The election counts values without weights, as PEFT's does."""
    elected = torch.where(sum(deltas) >= 0, 1.0, -1.0)  # pyright: ignore[reportOperatorIssue,reportCallIssue,reportArgumentType]
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for weight, delta in zip(weights, deltas, strict=True):
        agrees = delta.sign() == elected
        total += weight * delta * agrees
        count += agrees
    return total / count.clamp(min=1)


def _largest(delta: Tensor, density: float) -> Tensor:
    """Keep the floor(density * n) entries of largest magnitude."""
    count = int(density * delta.numel())
    flat = delta.flatten()
    order = np.argpartition(-flat.abs().numpy(), count - 1)[:count] if count else []
    kept = torch.zeros_like(flat)
    kept[order] = 1
    return (flat * kept).view_as(delta)


def _drop(delta: Tensor, density: float, random: np.random.Generator) -> Tensor:
    """Keep each entry with probability `density`, rescaled so that the expectation stays."""
    kept = torch.from_numpy(random.random(delta.shape, dtype=np.float32) < density)
    return delta * kept / density


def _breadcrumbs(delta: Tensor, density: float, gamma: float) -> Tensor:
    """Of each row, drop the floor(gamma n) largest and keep the next floor(density n)."""
    size = delta.shape[1]
    first, count = int(gamma * size), int(density * size)
    ends = sorted({first, min(first + count, size - 1)})
    order = np.argpartition(-delta.abs().numpy(), ends, axis=1)[:, first : first + count]
    return delta * torch.zeros_like(delta).scatter_(1, torch.from_numpy(order), 1)


def _linear(branches: list[_Branch], method: str, site: Site) -> _Factors:
    scales = [branch.scale for branch in branches if branch.scale is not None]
    if len(scales) < len(branches):
        raise _refused(method, f"a source has no published factors A and B at {site}", "Use 'sum'.")
    if len({branch.a.shape[0] for branch in branches}) > 1:
        raise _refused(method, f"the ranks at {site} differ", "Use 'sum', which takes any ranks.")
    if method == "peft-linear":
        roots = [math.sqrt(abs(x.weight * s)) for x, s in zip(branches, scales, strict=True)]
        signs = [math.copysign(1, x.weight * s) for x, s in zip(branches, scales, strict=True)]
        factors = zip(branches, roots, signs, scales, strict=True)
        pairs = [(sign * root * x.a, root / s * x.b) for x, root, sign, s in factors]
    else:
        factors = zip(branches, scales, strict=True)
        pairs = [(x.weight * x.a, x.weight * scales[0] / s * x.b) for x, s in factors]
    a, b = (torch.stack(factor).sum(0) for factor in zip(*pairs, strict=True))
    return a, b, 1.0, 0.0


def _cut_sum(branches: list[_Branch], rank: int) -> _Factors:
    """The truncated SVD of `sum(w D)`, from the factors' QR: D itself is never formed."""
    a = torch.cat([branch.weight * branch.a for branch in branches]).double()
    b = torch.cat([branch.b for branch in branches]).double()
    (qa, ra), (qb, rb) = torch.linalg.qr(a.T), torch.linalg.qr(b.T)
    u, s, vh = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    kept = _kept(s, rank)
    left, right = (qb @ u[:, :kept] * s[:kept]).T, vh[:kept] @ qa.T
    norms = s.square()
    return right.float(), left.float(), float(norms.sum()), float(norms[kept:].sum())


def _cut(delta: Tensor, rank: int, random: np.random.Generator) -> _Factors:
    """The factors of the best approximation of this rank (large matrices: very nearly the best)."""
    if min(delta.shape) <= _EXACT_SVD:
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    else:
        u, s, vh = _leading(delta, rank, random)
    kept = _kept(s, rank)
    b, a = (u[:, :kept] * s[:kept]).T, vh[:kept]
    lost = (delta - b.T @ a).double().square().sum()
    return a, b, float(delta.double().square().sum()), float(lost)


def _leading(
    delta: Tensor, rank: int, random: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular vectors by subspace iteration (Halko et al., 2011, algorithm 4.4)."""
    width = min(rank + 16, *delta.shape)
    x = torch.from_numpy(random.standard_normal((delta.shape[1], width), dtype=np.float32))
    for _ in range(4):
        x = torch.linalg.qr(delta.T @ torch.linalg.qr(delta @ x).Q).Q
    u, s, vh = torch.linalg.svd(delta @ x, full_matrices=False)
    return u, s, vh @ x.T


def _kept(values: Tensor, rank: int) -> int:
    """How many singular values to keep: what is nothing but rounding takes no rank."""
    return min(rank, max(1, int((values > values[0] * 1e-6).sum())))


def _by_site(programs: Sequence[Program], derivation: Derivation) -> dict[Site, list[_Branch]]:
    sites: dict[Site, list[_Branch]] = {}
    for program, source in zip(programs, derivation.sources, strict=True):
        _check(program, source.path, derivation.method)
        found: dict[Site, list[LowRank]] = {}
        for component in program.components:
            assert isinstance(component, LowRank), "it was checked"
            found.setdefault(component.site, []).append(component)
        for site, parts in found.items():
            a, b = (torch.cat([getattr(p, x).float() for p in parts]) for x in ("a", "b"))
            scale = parts[0].published_scale if len(parts) == 1 else None
            sites.setdefault(site, []).append(_Branch(source.weight, a, b, scale))
    if derivation.method == "lorax-linear":
        partly = [str(site) for site, found in sites.items() if len(found) < len(programs)]
        if partly:
            raise _refused(
                derivation.method,
                f"not all of the sources touch {listing(partly)}",
                "Use 'sum', which takes any targets.",
            )
    return sites


def _check(program: Program, path: str, method: str) -> None:
    others = {type(c).__name__ for c in program.components if not isinstance(c, LowRank)}
    if any(isinstance(c, LowRank) and c.num_experts for c in program.components):
        others.add("a mixture of experts")
    why = f"it uses {', '.join(sorted(others))}" if others else ""
    if program.positions is not None or program.num_virtual_tokens:
        why = "it acts at some positions only" if program.positions else "it puts tokens before"
    if why:
        raise _refused(
            method,
            f"{quote(path)} ({program.kind}) cannot be merged: {why}, and only low-rank changes "
            "that act everywhere can",
            "Stack them in the request, or in a recipe with 'adapters': that takes any kind.",
        )


def _refused(method: str, why: str, fix: str) -> AdapterUnsupported:
    return AdapterUnsupported(f"no adapter was derived by {quote(method)}", why, fix)
