"""Low-rank branches of the embedding: `y[rows] += w * A[:, tokens].T @ B`."""

from __future__ import annotations

import torch
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.entries import Entries
from turret_kernels.low_rank import RankPool


def embed_low_rank(
    y: Tensor,
    token_ids: Tensor,
    pool: RankPool,
    entries: Entries,
    weight: Tensor | None = None,
) -> None:
    """Add every entry's low-rank branch to the embedded tokens `y`, in place.

    Args:
        y: [T, hidden], contiguous.
        token_ids: int64 [T].
        pool: `a` is [R, vocab] and `b` [R, hidden], a row per rank as it stands (mixtures have
            no meaning here).
        entries: what acts on which rows.
        weight: float32 [E], where it differs from `entries.weight`.
    """
    if gpu.takes(y):
        from turret_kernels.gpu import embed_low_rank as kernels

        weight = entries.weight if weight is None else weight
        kernels.embed_low_rank(y, token_ids, pool, entries, weight)
        return
    embed_low_rank_reference(y, token_ids, pool, entries, weight)


def embed_low_rank_reference(
    y: Tensor,
    token_ids: Tensor,
    pool: RankPool,
    entries: Entries,
    weight: Tensor | None = None,
) -> None:
    """Gathered columns times rows; computes in float32, or in float64 if given it."""
    wide = torch.promote_types(y.dtype, torch.float32)
    for slot, w, rows in entries.each(weight):
        start, rank = int(pool.start[slot]), int(pool.count[slot])
        if rank == 0:
            continue
        a, b = pool.a[start : start + rank], pool.b[start : start + rank]
        hidden = a.index_select(1, token_ids[rows]).to(wide).T  # [rows, rank]
        out = y[rows]
        out.copy_(out.to(wide).addmm_(hidden, b.to(wide), alpha=w))
