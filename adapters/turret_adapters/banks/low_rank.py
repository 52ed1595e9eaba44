"""The rank rows of every resident adapter, pooled per site."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turret_adapters.banks.rank_rows import RankRowBank
from turret_adapters.components import LowRank, by_site
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.groups import Group
from turret_adapters.site_weights import weight_at
from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels import gpu, native
from turret_kernels.activation import Activation
from turret_kernels.embed_low_rank import embed_low_rank
from turret_kernels.entries import Entries
from turret_kernels.low_rank import RankPool, RankSlices, low_rank, write_rank_rows
from turret_kernels.low_rank_act_mul import low_rank_act_mul


class LowRankBank(RankRowBank[LowRank, RankPool, RankSlices]):
    """Low-rank branches of the resident adapters, in the served dtype.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        max_rank_rows: rows per site.
        device: where the rows live.
        dtype: the served dtype.

    Attributes:
        capturable: false from the first site on whose sizes need torch.
    """

    kind, flag = LowRank, "--adapter-rank-rows"

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        max_rank_rows: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        super().__init__(shape, num_slots, max_rank_rows, device)
        is_native = native.lib is not None and dtype == torch.bfloat16
        self.capturable = is_native or gpu.serves(device)
        self._dtype = dtype

    def demand(self, components: Sequence[LowRank]) -> dict[Site, int]:
        """Rows that an adapter takes, per site.

        Raises:
            AdapterUnsupported: a mixture shares its site with another branch.
        """
        for site, parts in by_site(components).items():
            if len(parts) > 1 and any(part.num_experts for part in parts):
                raise AdapterUnsupported(
                    "the adapter cannot become resident",
                    f"at {site} it combines a mixture of experts with another low-rank branch",
                    "Load them as two adapters and name both in the request.",
                )
        return super().demand(components)

    def apply(self, layer: int, group: Group, y: Tensor, x: Tensor, entries: Entries) -> None:
        """Add the branches to a group's output, in place.

        Args:
            layer: -1 for embedding and head.
            group: which sites; some entry touches it.
            y: [T, columns of the group], contiguous.
            x: [T, in], contiguous; at the embedding the token ids, int64 [T]; at an activation
                `y` itself.
            entries: what acts on which rows of `y`.
        """
        found = self.at(layer, group)
        weights = [weight_at(entries, layer, module) for module in found.modules]
        if group is Group.EMBED:
            embed_low_rank(y, x, found.slices.pools[0], entries, weights[0])
        else:
            low_rank(y, x, found.slices, entries, weights)

    def gated(
        self, layer: int, gate_up: Tensor, x: Tensor, entries: Entries, activation: Activation
    ) -> Tensor:
        """`apply` at gate and up, and then `act(gate) * up`: [T, 2 I] -> [T, I]."""
        found = self.at(layer, Group.GATE_UP)
        weights = [weight_at(entries, layer, module) for module in found.modules]
        return low_rank_act_mul(gate_up, x, found.slices, entries, activation, weights)

    def make_pool(self, site: Site, rows: int, slots: Tensor) -> RankPool:  # noqa: D102
        fan_in, fan_out = self._shape.size(site.module)
        # empty, not zeros: the system gives memory to a page when it is first written.
        a = torch.empty(rows, fan_in, dtype=self._dtype, device=self._device)
        b = torch.empty(rows, fan_out, dtype=self._dtype, device=self._device)
        pool = RankPool(a, b, slots=slots)
        # The embedding is not part of a graph.
        is_embedding = site.module is Module.EMBED
        self.capturable &= pool.native or is_embedding or gpu.serves(self._device)
        return pool

    def make_slices(self, pools: list[RankPool], columns: list[int]) -> RankSlices:  # noqa: D102
        return RankSlices(pools, columns)

    def num_experts(self, parts: Sequence[LowRank]) -> int:  # noqa: D102
        return parts[0].num_experts

    def is_launched_for_ranks(self, pool: RankPool) -> bool:  # noqa: D102
        return not pool.native

    def write(  # noqa: D102
        self, site: Site, pool: RankPool, start: int, parts: Sequence[LowRank]
    ) -> None:
        if site.module is Module.EMBED:  # read by columns, not by the kernel
            for part in parts:
                pool.a[start : start + part.rank].copy_(part.a, non_blocking=True)
                pool.b[start : start + part.rank].copy_(part.b, non_blocking=True)
                start += part.rank
            return
        if len(parts) > 1:
            a, b = torch.cat([part.a for part in parts]), torch.cat([part.b for part in parts])
        else:
            a, b = parts[0].a, parts[0].b
            if experts := parts[0].num_experts:  # a gate puts nothing out
                b = torch.cat([b[:-experts], b.new_zeros(experts, b.shape[1])])
        write_rank_rows(pool, start, a, b)
