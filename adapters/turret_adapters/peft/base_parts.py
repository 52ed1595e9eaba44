"""Parts of the base's weight that some trainings took away from it, as low-rank factors.

PiSSA, OLoRA and KaSA train on `W - P(W)`. `P` depends on the base alone, so an adapter of theirs
means `sBA - P(W)` on the base that is served. Each function returns P(W) = b.T @ a, or None where
P(W) is not determined by W to about 1e-3 of its norm: then the training's own rounding decided it.
"""

from __future__ import annotations

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]  # a [rank, in], b [rank, out], float64

# Training computes in float32. Where two singular values lie closer than this, relative to their
# size, or columns depend on each other this much, its rounding (6e-8) shows in the third digit.
_CLOSE = 1e-4


def largest(weight: Tensor, rank: int) -> Part | None:
    """The `rank` largest singular components (PiSSA: Meng et al., 2024, section 3)."""
    return _components(weight, rank, slice(-rank, None))


def smallest(weight: Tensor, rank: int) -> Part | None:
    """The `rank` smallest singular components (KaSA: Wang et al., 2024, section 3.1)."""
    return _components(weight, rank, slice(rank))


def leading_columns(weight: Tensor, rank: int) -> Part | None:
    """`Q_r R_r` of `W = QR` (OLoRA: Büyükakyüz, 2024): W projected on its first columns."""
    weight = weight.double()
    if rank > min(weight.shape):
        return None
    q, r = torch.linalg.qr(weight[:, :rank])
    pivots = r.diagonal().abs()
    if pivots.min() <= _CLOSE * pivots.max():
        return None
    return q.T @ weight, q.T


def balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 factors of the same product `b.T @ a`, no larger than the product asks for.

    A difference of two large products keeps its digits only if it is taken before the factors are
    rounded to the served dtype.
    """
    qa, ra = torch.linalg.qr(a.double().T)
    qb, rb = torch.linalg.qr(b.double().T)
    u, s, vh = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    root = s.sqrt()
    return (root[:, None] * (vh @ qa.T)).float(), ((qb @ u) * root).T.float()


def _components(weight: Tensor, rank: int, which: slice) -> Part | None:
    weight = weight.double()
    fan_out, fan_in = weight.shape
    size = min(fan_out, fan_in)
    if rank > size:
        return None
    # Eigenvectors of the smaller Gram matrix: faster than the SVD, and float64 pays for the square.
    is_wide = fan_out <= fan_in
    squares, vectors = torch.linalg.eigh(weight @ weight.T if is_wide else weight.T @ weight)
    if rank < size:
        cut = rank if which.start is None else size - rank
        below, above = squares[cut - 1 : cut + 1].clamp(min=0).sqrt()
        if above - below <= _CLOSE * above:
            return None
    chosen = vectors[:, which].T  # [rank, size]
    if is_wide:
        return chosen @ weight, chosen
    return chosen, chosen @ weight.T
