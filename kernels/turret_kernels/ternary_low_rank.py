"""Low-rank branches whose factors are -1, 0 or 1 times a scale (ComPEFT), in two bits a value.

As `low_rank`, from pools of their own: `y[rows] += w * (x[rows] @ A.T * scale) @ B`, where `scale`
is one number per rank. A step's bytes of A and B are an eighth of bfloat16's.

Two bits of a value are its sign and whether it is anything but 0, which is a plane of signs and a
plane of ones, but interleaved. Eight values are a word of 16 bits; word j of a row's `words` has
the values j, j + words, j + 2 words, … from its high bits down. So `word << 2 * i` has value
j + i * words in its two highest bits, where a float of 16 bits, bfloat16 or float16, has its sign
and the bit that alone means 2.0: with the other bits cleared it is the value, doubled. A shift and
a mask unpack a value, and neighbours in memory stay neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.entries import Entries
from turret_kernels.low_rank import RankSlots

WORD_VALUES = 8
_ALIGNMENT = 8  # words: rows begin at multiples of 16 bytes


def num_words(width: int) -> int:
    """Words of a row of so many values."""
    return -(-width // (WORD_VALUES * _ALIGNMENT)) * _ALIGNMENT


def pack_ternary(values: Tensor) -> Tensor:
    """[R, width] in {-1, 0, 1} -> int16 [R, num_words(width)]; the last words are filled with 0."""
    rows, width = values.shape
    words = num_words(width)
    padded = torch.zeros(rows, WORD_VALUES * words, dtype=torch.int32, device=values.device)
    padded[:, :width] = (values != 0).int() | (values < 0).int() << 1
    packed = (padded.view(rows, WORD_VALUES, words) << _shifts(values.device)).sum(1)
    return packed.to(torch.int32).to(torch.int16)  # the sign bit is one of the sixteen


def unpack_ternary(words: Tensor, width: int) -> Tensor:
    """The inverse: int8 [R, width]."""
    codes = words.int()[:, None] >> _shifts(words.device) & 3
    values = (codes & 1) * (1 - (codes & 2))
    return values.flatten(1)[:, :width].to(torch.int8)


def _shifts(device: torch.device) -> Tensor:
    """[8, 1]: where each value of a word has its two bits."""
    return torch.arange(14, -1, -2, dtype=torch.int32, device=device)[:, None]


@dataclass(slots=True)
class TernaryPool(RankSlots):
    """The ternary rank rows of one linear, on the device; none has experts.

    Attributes:
        a: int16 [R, num_words(in_features)].
        b: int16 [R, num_words(out_features)].
        scale: float32 [R], of the product of both.
        in_features, out_features: values of a row.
    """

    a: Tensor
    b: Tensor
    scale: Tensor
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class TernarySlices:
    """The pools of one fused site with their columns."""

    pools: Sequence[TernaryPool]
    columns: Sequence[int]


def write_ternary_rows(pool: TernaryPool, start: int, a: Tensor, b: Tensor, scale: Tensor) -> None:
    """Write an adapter's packed factors into rows from `start`; no step may be reading them."""
    rows = slice(start, start + len(scale))
    for of_pool, part in zip((pool.a, pool.b, pool.scale), (a, b, scale), strict=True):
        of_pool[rows].copy_(part, non_blocking=True)


def ternary_low_rank(
    y: Tensor,
    x: Tensor,
    slices: TernarySlices,
    entries: Entries,
    weights: Sequence[Tensor] | None = None,
) -> None:
    """Add every entry's branch to `y`, in place, for the slices of one fused site.

    Args:
        y: [T, sum(out_features)] output of the base linear, contiguous; float32 for logits.
        x: [T, in_features] its input, contiguous.
        slices: one pool per slice (q, k, v; gate, up; or one).
        entries: what acts where.
        weights: float32 [E] per slice, where they differ from `entries.weight`.
    """
    if gpu.takes(x):
        from turret_kernels.gpu import ternary_low_rank as kernels

        of_slices = weights or [entries.weight] * len(slices.pools)
        kernels.ternary_low_rank(y, x, slices, entries, of_slices)
        return
    ternary_low_rank_reference(y, x, slices, entries, weights)


def ternary_low_rank_reference(
    y: Tensor,
    x: Tensor,
    slices: TernarySlices,
    entries: Entries,
    weights: Sequence[Tensor] | None = None,
) -> None:
    """The obvious loop over unpacked rows; hidden values stay in float32."""
    columns = zip(slices.pools, slices.columns, weights or [None] * len(slices.pools), strict=True)
    for pool, column, weight in columns:
        for slot, w, rows in entries.each(weight):
            start, rank = int(pool.start[slot]), int(pool.count[slot])
            if rank == 0:
                continue
            own = slice(start, start + rank)
            a = unpack_ternary(pool.a[own], pool.in_features).float()
            b = unpack_ternary(pool.b[own], pool.out_features).float()
            delta = (x[rows].float() @ a.T * (w * pool.scale[own])) @ b
            out = y[rows, column : column + pool.out_features]
            out.copy_(out.float() + delta)
