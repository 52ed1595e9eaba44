"""What the banks have in common whose adapters own consecutive rows of a pool per site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from turret_adapters.banks.rows import RowAllocator
from turret_adapters.components import Component, by_site
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.groups import Group, first_column, num_points, point
from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels.low_rank import ROW_ALIGNMENT, RankSlots

C = TypeVar("C", bound=Component)
P = TypeVar("P", bound=RankSlots)
S = TypeVar("S")  # what a kernel takes of a group's pools


@dataclass(frozen=True, slots=True)
class SitePool(Generic[P]):
    """One site: its rows on the device, which of them are free, its place in the slot table."""

    pool: P
    rows: RowAllocator
    place: int


@dataclass(frozen=True, slots=True)
class GroupSlices(Generic[S]):
    """The sites of a group that have a pool."""

    modules: tuple[Module, ...]
    slices: S


class RankRowBank(ABC, Generic[C, P, S]):
    """Branches of the resident adapters, one row of a pool per rank.

    A site has a pool of `max_rows` rows from the first adapter that acts there. A slot of rank r
    occupies r consecutive rows of it, so nothing is padded to the largest rank, and a model whose
    adapters leave a site alone pays nothing for it.

    One thread calls `put` and `clear`, another applies: a slot that is applied is never written.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        max_rows: rows per site.
        device: where the rows live.

    Attributes:
        kind: the components it holds.
        flag: what sets `max_rows`.
        touched: per slot, the bits `point(layer, group)` of the groups it acts on.
        capturable: what it launches are native kernels alone, or Triton's, so a graph can hold it.
        layout: counts the pools, and the changes of what a GPU's kernels are launched for; a graph
            recorded before one is stale.
    """

    kind: ClassVar[type[Component]]
    flag: ClassVar[str]
    capturable: bool

    def __init__(self, shape: ModelShape, num_slots: int, max_rows: int, device: torch.device):
        self.touched = [0] * num_slots
        self.layout = 0
        self._shape, self._max_rows, self._device = shape, max_rows, device
        self._sites: dict[Site, SitePool[P]] = {}
        # One table for all pools, so that an adapter's place in all of them is written at once;
        # each pool's part of it is aligned as memory of its own would be.
        most, aligned = (shape.num_layers + 1) * len(Module), -(-num_slots // 4) * 4
        table = torch.zeros(most, 3, aligned, dtype=torch.int32, device=device)
        self._slots = table[:, :, :num_slots]
        self._taken: list[list[tuple[Site, int, int]]] = [[] for _ in range(num_slots)]
        self._groups: list[GroupSlices[S] | None] = [None] * num_points(shape)

    @abstractmethod
    def make_pool(self, site: Site, rows: int, slots: Tensor) -> P:
        """Memory for a site's rows, which nobody has written."""

    @abstractmethod
    def write(self, site: Site, pool: P, start: int, parts: Sequence[C]) -> None:
        """Write the sum of an adapter's branches at a site into rows from `start` on."""

    @abstractmethod
    def make_slices(self, pools: list[P], columns: list[int]) -> S:
        """What a kernel takes: the pools of a group, and the columns where each site begins."""

    def num_experts(self, parts: Sequence[C]) -> int:
        """Of a mixture, which is alone at its site."""
        del parts
        return 0

    def is_launched_for_ranks(self, pool: P) -> bool:
        """Are kernels launched for the pool's largest rank?"""
        del pool
        return True

    @property
    def rows_used(self) -> int:
        """Rows in use at the fullest site."""
        return max((site.rows.used for site in self._sites.values()), default=0)

    def takes(self, component: Component) -> bool:
        """Is it stored here?"""
        return isinstance(component, self.kind)

    def demand(self, components: Sequence[C]) -> dict[Site, int]:
        """Rows that an adapter takes, per site."""
        return {site: _num_rows(parts) for site, parts in by_site(components).items()}

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Can adapters of these demands be resident together, with the bank to themselves?

        Raises:
            AdapterUnsupported: a site would need more rows than there are.
        """
        total: Counter[Site] = Counter()
        for demand in demands:
            total.update(demand)
        site, rows = max(total.items(), key=lambda item: item[1], default=(None, 0))
        if rows > self._max_rows:
            raise AdapterUnsupported(
                "the adapter cannot become resident"
                if len(demands) == 1
                else "the adapters cannot become resident together",
                f"they take {rows} rank rows at {site}, and there are {self._max_rows}",
                f"Restart with {self.flag} {rows} or more.",
            )

    def put(self, slot: int, components: Sequence[C]) -> bool:
        """Store an adapter's branches; all of them, or nothing where the rows do not suffice."""
        placed: list[tuple[Site, int, int]] = []
        at_sites = by_site(components)
        try:
            for site, parts in at_sites.items():
                rows = _num_rows(parts)
                start = self._site(site).rows.allocate(rows)
                if start is None:
                    self._release(placed)
                    return False
                placed.append((site, start, rows))
            for site, start, _ in placed:
                self.write(site, self._sites[site].pool, start, at_sites[site])
        except BaseException:  # out of memory: leave no trace, then tell
            self._release(placed)
            raise
        mask, places, owned = 0, [], []
        for site, start, _ in placed:
            parts, found = at_sites[site], self._sites[site]
            rank, experts, pool = _rank(parts), self.num_experts(parts), found.pool
            launched_for = pool.max_rank, pool.has_mixtures
            pool.expect(rank, experts)
            changed = launched_for != (pool.max_rank, pool.has_mixtures)
            self.layout += changed and self.is_launched_for_ranks(pool)
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

    def at(self, layer: int, group: Group) -> GroupSlices[S]:
        """The pools of a group that some resident adapter touches."""
        found = self._groups[point(layer, group)]
        assert found is not None, "an adapter touches the group, so its pool exists"
        return found

    def _site(self, site: Site) -> SitePool[P]:
        if site not in self._sites:
            rows, place = self._max_rows, len(self._sites)
            pool = self.make_pool(site, rows, self._slots[place])
            self._sites[site] = SitePool(pool, RowAllocator(rows), place)
            self._update_group(site)
        return self._sites[site]

    def _assign(self, slot: int, places: list[int], owned: list[tuple[int, int, int]]) -> None:
        """Let a slot own (start, rank, experts) at each of these places."""
        at = torch.tensor(places, device=self._device)
        self._slots[at, :, slot] = torch.tensor(owned, dtype=torch.int32, device=self._device)

    def _update_group(self, new: Site) -> None:
        group = Group.of(new.module)
        modules = tuple(m for m in group.modules if Site(new.layer, m) in self._sites)
        pools = [self._sites[Site(new.layer, m)].pool for m in modules]
        columns = [first_column(self._shape, m) for m in modules]
        self.layout += 1
        found = GroupSlices(modules, self.make_slices(pools, columns))
        # One assignment: a running step sees the old slices or the new ones.
        self._groups[point(new.layer, group)] = found

    def _release(self, placed: list[tuple[Site, int, int]]) -> None:
        for site, start, rows in placed:
            self._sites[site].rows.release(start, rows)


def _rank(parts: Sequence[Component]) -> int:
    """The rank of the sum of several branches at one site."""
    return sum(part.rank for part in parts)


def _num_rows(parts: Sequence[Component]) -> int:
    """Rows they take in a pool."""
    return -(-_rank(parts) // ROW_ALIGNMENT) * ROW_ALIGNMENT
