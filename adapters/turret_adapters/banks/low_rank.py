"""The rank rows of every resident adapter, pooled per site."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from turret_adapters.banks.rows import RowAllocator
from turret_adapters.components import Component, LowRank
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.groups import Group, first_column, num_points, point
from turret_adapters.site_weights import weight_at
from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels import gpu, native
from turret_kernels.embed_low_rank import embed_low_rank
from turret_kernels.entries import Entries
from turret_kernels.low_rank import (
    ROW_ALIGNMENT,
    RankPool,
    RankSlices,
    low_rank,
    write_rank_rows,
)


@dataclass(frozen=True, slots=True)
class _SitePool:
    """One site: its rows on the device, which of them are free, its place in the slot table."""

    pool: RankPool
    rows: RowAllocator
    place: int


@dataclass(frozen=True, slots=True)
class _GroupSlices:
    """The sites of a group that have a pool."""

    modules: tuple[Module, ...]
    slices: RankSlices


class LowRankBank:
    """Low-rank branches of the resident adapters.

    A site has a pool of `max_rank_rows` rows from the first adapter that acts there. A slot of
    rank r occupies r consecutive rows of it, so nothing is padded to the largest rank, and a model
    whose adapters leave a site alone pays nothing for it.

    One thread calls `put` and `clear`, another `apply`: a slot that `apply` reads is never written.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        max_rank_rows: rows per site.
        device: where the rows live.
        dtype: the served dtype.

    Attributes:
        touched: per slot, the bits `point(layer, group)` of the groups it acts on.
        capturable: `apply` launches native kernels alone, or Triton's, so a graph can hold it;
            false from the first site on whose sizes need torch.
        layout: counts the pools, and the changes of what a GPU's kernels are launched for; a graph
            recorded before one is stale.
    """

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        max_rank_rows: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.touched = [0] * num_slots
        is_native = native.lib is not None and dtype == torch.bfloat16
        self.capturable, self.layout = is_native or gpu.serves(device), 0
        self._shape, self._max_rank_rows = shape, max_rank_rows
        self._device, self._dtype = device, dtype
        self._sites: dict[Site, _SitePool] = {}
        # One table for all pools, so that an adapter's place in all of them is written at once;
        # each pool's part of it is aligned as memory of its own would be.
        most, aligned = (shape.num_layers + 1) * len(Module), -(-num_slots // 4) * 4
        table = torch.zeros(most, 3, aligned, dtype=torch.int32, device=device)
        self._slots = table[:, :, :num_slots]
        self._taken: list[list[tuple[Site, int, int]]] = [[] for _ in range(num_slots)]
        self._groups: list[_GroupSlices | None] = [None] * num_points(shape)

    @property
    def rows_used(self) -> int:
        """Rows in use at the fullest site."""
        return max((site.rows.used for site in self._sites.values()), default=0)

    def takes(self, component: Component) -> bool:
        """Is it stored here?"""
        return isinstance(component, LowRank)

    def demand(self, components: Sequence[LowRank]) -> dict[Site, int]:
        """Rows that an adapter takes, per site.

        Raises:
            AdapterUnsupported: a mixture shares its site with another branch.
        """
        for site, parts in _by_site(components).items():
            if len(parts) > 1 and any(part.num_experts for part in parts):
                raise AdapterUnsupported(
                    "the adapter cannot become resident",
                    f"at {site} it combines a mixture of experts with another low-rank branch",
                    "Load them as two adapters and name both in the request.",
                )
        return {site: _num_rows(parts) for site, parts in _by_site(components).items()}

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Can adapters of these demands be resident together, with the bank to themselves?

        Raises:
            AdapterUnsupported: a site would need more rows than there are.
        """
        total: Counter[Site] = Counter()
        for demand in demands:
            total.update(demand)
        site, rows = max(total.items(), key=lambda item: item[1], default=(None, 0))
        if rows > self._max_rank_rows:
            raise AdapterUnsupported(
                "the adapter cannot become resident"
                if len(demands) == 1
                else "the adapters cannot become resident together",
                f"they take {rows} rank rows at {site}, and there are {self._max_rank_rows}",
                f"Restart with --adapter-rank-rows {rows} or more.",
            )

    def put(self, slot: int, components: Sequence[LowRank]) -> bool:
        """Store an adapter's branches; all of them, or nothing where the rows do not suffice."""
        placed: list[tuple[Site, int, int]] = []
        by_site = _by_site(components)
        try:
            for site, parts in by_site.items():
                rows = _num_rows(parts)
                start = self._site(site).rows.allocate(rows)
                if start is None:
                    self._release(placed)
                    return False
                placed.append((site, start, rows))
            for site, start, _ in placed:
                self._write(site, start, by_site[site])
        except BaseException:  # out of memory: leave no trace, then tell
            self._release(placed)
            raise
        mask, places, owned = 0, [], []
        for site, start, _ in placed:
            parts, found = by_site[site], self._sites[site]
            rank, experts, pool = _rank(parts), parts[0].num_experts, found.pool
            launched_for = pool.max_rank, pool.has_mixtures
            pool.expect(rank, experts)
            if not pool.native and launched_for != (pool.max_rank, pool.has_mixtures):
                self.layout += 1
            places.append(found.place)
            owned.append((start, rank, experts))
            mask |= 1 << point(site.layer, Group.of(site.module))
        if placed:
            self._assign(slot, places, owned)
        self._taken[slot], self.touched[slot] = placed, mask
        return True

    def clear(self, slot: int) -> None:
        """Free the rows of a slot; an empty slot is fine."""
        self.touched[slot] = 0
        self._slots[:, :, slot] = 0
        self._release(self._taken[slot])
        self._taken[slot] = []

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
        found = self._groups[point(layer, group)]
        assert found is not None, "some entry touches the group, so its pool exists"
        weights = [weight_at(entries, layer, module) for module in found.modules]
        if group is Group.EMBED:
            embed_low_rank(y, x, found.slices.pools[0], entries, weights[0])
        else:
            low_rank(y, x, found.slices, entries, weights)

    def _site(self, site: Site) -> _SitePool:
        if site not in self._sites:
            fan_in, fan_out = self._shape.size(site.module)
            rows, place = self._max_rank_rows, len(self._sites)
            # empty, not zeros: the system gives memory to a page when it is first written.
            a = torch.empty(rows, fan_in, dtype=self._dtype, device=self._device)
            b = torch.empty(rows, fan_out, dtype=self._dtype, device=self._device)
            pool = RankPool(a, b, self._slots[place])
            self._sites[site] = _SitePool(pool, RowAllocator(rows), place)
            # The embedding is not part of a graph.
            is_embedding = site.module is Module.EMBED
            self.capturable &= pool.native or is_embedding or gpu.serves(self._device)
            self._update_group(site)
        return self._sites[site]

    def _assign(self, slot: int, places: list[int], owned: list[tuple[int, int, int]]) -> None:
        """Let a slot own (start, rank, experts) at each of these places."""
        at = torch.tensor(places, device=self._device)
        self._slots[at, :, slot] = torch.tensor(owned, dtype=torch.int32, device=self._device)

    def _write(self, site: Site, start: int, parts: Sequence[LowRank]) -> None:
        pool = self._sites[site].pool
        if site.module is Module.EMBED:  # read by columns, below, not by the kernel
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

    def _update_group(self, new: Site) -> None:
        group = Group.of(new.module)
        modules = tuple(m for m in group.modules if Site(new.layer, m) in self._sites)
        pools = [self._sites[Site(new.layer, m)].pool for m in modules]
        columns = [first_column(self._shape, m) for m in modules]
        self.layout += 1
        # One assignment: a running step sees the old slices or the new ones.
        self._groups[point(new.layer, group)] = _GroupSlices(modules, RankSlices(pools, columns))

    def _release(self, placed: list[tuple[Site, int, int]]) -> None:
        for site, start, rows in placed:
            self._sites[site].rows.release(start, rows)


def _by_site(components: Sequence[LowRank]) -> dict[Site, list[LowRank]]:
    by_site: defaultdict[Site, list[LowRank]] = defaultdict(list)
    for component in components:
        by_site[component.site].append(component)
    return by_site


def _rank(parts: Sequence[LowRank]) -> int:
    """The rank of the sum of several branches at one site."""
    return sum(part.rank for part in parts)


def _num_rows(parts: Sequence[LowRank]) -> int:
    """Rows they take in a pool."""
    return -(-_rank(parts) // ROW_ALIGNMENT) * ROW_ALIGNMENT
