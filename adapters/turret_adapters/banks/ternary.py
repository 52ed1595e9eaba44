"""Rank rows of two bits a value, of the adapters whose factors need no more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turret_adapters.banks.rank_rows import RankRowBank
from turret_adapters.components import TernaryLowRank
from turret_adapters.groups import Group
from turret_adapters.site_weights import weight_at
from turret_adapters.spec import ModelShape, Site
from turret_kernels import gpu
from turret_kernels.entries import Entries
from turret_kernels.ternary_low_rank import (
    TernaryPool,
    TernarySlices,
    num_words,
    ternary_low_rank,
    write_ternary_rows,
)


class TernaryBank(RankRowBank[TernaryLowRank, TernaryPool, TernarySlices]):
    """Ternary branches of the resident adapters, beside `LowRankBank` and its rows.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        max_rows: rows per site.
        device: where the rows live.
    """

    kind, flag = TernaryLowRank, "--adapter-ternary-rows"

    def __init__(self, shape: ModelShape, num_slots: int, max_rows: int, device: torch.device):
        super().__init__(shape, num_slots, max_rows, device)
        self.capturable = gpu.serves(device)

    def apply(self, layer: int, group: Group, y: Tensor, x: Tensor, entries: Entries) -> None:
        """Add the branches to a group's output, in place; see `LowRankBank.apply`."""
        found = self.at(layer, group)
        weights = [weight_at(entries, layer, module) for module in found.modules]
        ternary_low_rank(y, x, found.slices, entries, weights)

    def make_pool(self, site: Site, rows: int, slots: Tensor) -> TernaryPool:  # noqa: D102
        fan_in, fan_out = self._shape.size(site.module)
        a, b = (
            torch.empty(rows, num_words(width), dtype=torch.int16, device=self._device)
            for width in (fan_in, fan_out)
        )
        scale = torch.empty(rows, dtype=torch.float32, device=self._device)
        return TernaryPool(
            a=a, b=b, scale=scale, in_features=fan_in, out_features=fan_out, slots=slots
        )

    def make_slices(  # noqa: D102
        self, pools: list[TernaryPool], columns: list[int]
    ) -> TernarySlices:
        return TernarySlices(pools, columns)

    def write(  # noqa: D102
        self, site: Site, pool: TernaryPool, start: int, parts: Sequence[TernaryLowRank]
    ) -> None:
        for part in parts:
            write_ternary_rows(pool, start, part.a, part.b, part.scale)
            start += part.rank
