"""What acts on which rows in one step: built once per step, asked at every site of the decoder."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_

import torch
from torch import Tensor

from turret_adapters.banks.device import ActingBank, Bank, DeviceBanks
from turret_adapters.banks.split_linear import split_linear
from turret_adapters.groups import Group, point
from turret_adapters.site_weights import SiteWeights
from turret_adapters.spec import Module
from turret_kernels.activation import Activation, act_mul
from turret_kernels.entries import Entries
from turret_kernels.linear import LinearWeight, linear
from turret_kernels.rope_kv import KVCache
from turret_kernels.sparse_mlp import MAX_ROWS, MlpWeights

__all__ = ["BASE", "BasePlan", "Group", "RowUse", "StepPlan"]

Weight = float | SiteWeights


@dataclass(frozen=True, slots=True)
class RowUse:
    """Consecutive token rows that run one recipe.

    Attributes:
        row_start: first token row.
        row_count: number of rows, at least 1.
        slots: the recipe's adapters, as `AdapterStore.try_pin` returned them.
        weights: one per slot: a number, or numbers per site.
        virtual: number of the first row among the recipe's virtual tokens, the others follow it;
            -1 where the rows are real tokens.
    """

    row_start: int
    row_count: int
    slots: tuple[int, ...]
    weights: tuple[Weight, ...]
    virtual: int = -1


class BasePlan:
    """A step in which nothing but the base acts, and what a decoder may ask of any step."""

    __slots__ = ()

    def __bool__(self) -> bool:
        """Does anything but the base act in this step?"""
        return False

    def embed(self, hidden: Tensor, token_ids: Tensor, scale: float = 1.0) -> None:
        """Let the adapters act on the embedded tokens, and scale them, in place.

        Args:
            hidden: [T, hidden], rows of the embedding.
            token_ids: int64 [T].
            scale: what the model multiplies its embedding by, adapted or not; virtual tokens are
                not of the embedding.
        """
        if scale != 1:
            hidden *= scale

    def store(self, layer: int, places: Tensor, cache: KVCache) -> None:
        """Let prefixes replace what a layer has just written to its cache.

        Args:
            layer: its number.
            places: int64 [T], where the step's tokens lie in the cache.
            cache: of the layer.
        """

    def touches(self, layer: int, group: Group) -> bool:
        """Does anything act there? For places that take work to ask at."""
        return False

    def touch(self, layer: int, group: Group, x: Tensor) -> None:
        """Let the adapters act on an activation `x` [T, N], in place; `layer` is -1 at HEAD_IN."""

    def linear(
        self, layer: int, group: Group, x: Tensor, weight: LinearWeight, bias: Tensor | None
    ) -> Tensor:
        """The linears of a group, adapted.

        Args:
            layer: number of the decoder layer.
            group: which linears.
            x: [T, in], contiguous.
            weight: of the linears, one under the other.
            bias: theirs.

        Returns:
            [T, out of the group], contiguous.
        """
        return linear(x, weight, bias)

    def gate(self, layer: int, gate_up: Tensor, activation: Activation) -> Tensor:
        """`act(gate) * up` [T, I] of [T, 2 I], adapted."""
        return act_mul(gate_up, activation)

    def gated(self, layer: int, x: Tensor, weights: MlpWeights) -> Tensor:
        """`act(gate) * up` [T, I] of the rows `x` [T, H] that both read, adapted."""
        gate_up = self.linear(layer, Group.GATE_UP, x, weights.gate_up, weights.gate_up_bias)
        return self.gate(layer, gate_up, weights.activation)

    def mlp(self, layer: int, x: Tensor, weights: MlpWeights) -> Tensor:
        """A whole gated MLP [T, H] of the normed rows `x` [T, H], adapted."""
        self.touch(layer, Group.MLP_IN, x)
        x = self.gated(layer, x, weights)
        self.touch(layer, Group.INNER, x)
        return self.linear(layer, Group.DOWN, x, weights.down, weights.down_bias)

    def head(self, logits: Tensor, x: Tensor) -> None:
        """Let the adapters act on logits, in place.

        Args:
            logits: float32 [L, vocab].
            x: [L, hidden], what the head read: the rows named by the step.
        """


BASE = BasePlan()


class StepPlan(BasePlan):
    """The adapters of one step.

    A site that no active adapter touches costs one test of a bit and launches nothing.

    Args:
        banks: what the slots hold.
        uses: the rows that run adapters; rows of no use are the base's. The slots are pinned
            until the step is over.
        logit_rows: token rows whose logits are computed, ascending; None means every row.
    """

    __slots__ = (
        "_active",
        "_entries",
        "_gated",
        "_head",
        "_logit_rows",
        "_low_rank",
        "_num_rows",
        "_rotation",
        "_shape",
        "_sparse",
        "_threshold",
        "_turned",
        "_uses",
        "_virtual",
        "_virtual_bank",
    )

    def __init__(
        self,
        banks: DeviceBanks,
        uses: Sequence[RowUse],
        logit_rows: Tensor | Sequence[int] | None = None,
    ):
        self._uses = [
            (use.row_start, use.row_count, slot, weight)
            for use in uses
            for slot, weight in zip(use.slots, use.weights, strict=True)
            if weight != 0
        ]
        slots = {slot for _, _, slot, _ in self._uses}
        masks = [(bank, _touched(bank.touched, slots)) for bank in banks.acting]
        self._active: list[tuple[ActingBank, int]] = [(bank, mask) for bank, mask in masks if mask]
        self._virtual_bank = banks.virtual
        self._virtual = [
            (use.row_start, use.row_count, slot, use.virtual)
            for use in uses
            if use.virtual >= 0
            for slot in use.slots
            if banks.virtual.touched[slot]
        ]
        self._threshold, self._low_rank = banks.threshold, banks.low_rank
        self._sparse = _touched(banks.threshold.touched, slots)  # where thresholds act
        self._shape, self._rotation = banks.shape, banks.rotation
        self._turned = _touched(banks.rotation.touched, slots)  # where inputs are rotated
        # Where every row that runs adapters has a threshold; rows of the base may join them.
        self._num_rows = sum(use.row_count for use in uses)
        self._gated = _everywhere(banks.threshold.touched, uses) if self._sparse else 0
        self._head: Entries | None = None
        self._logit_rows = logit_rows
        if self:
            self._entries = _build(self._uses)

    def __bool__(self) -> bool:
        return bool(self._active or self._sparse or self._turned or self._virtual)

    def signature(self, rows: int) -> tuple[tuple[int, ...], ...] | None:
        """Equal for steps that launch the same kernels, so that one recorded graph serves them.

        None where a graph cannot hold the step: banks that run torch ops, or virtual tokens.
        What acts on the embedding does not matter: graphs begin behind it.

        Args:
            rows: token rows of the step, the base's included.
        """
        embed = 1 << point(-1, Group.EMBED)
        every: list[tuple[Bank, int]] = [(bank, mask & ~embed) for bank, mask in self._active]
        every += [(self._threshold, self._sparse), (self._rotation, self._turned)]
        if self._virtual or any(mask and not b.capturable for b, mask in every):
            return None
        banks = ((id(bank), mask, bank.layout) for bank, mask in every)
        gated = self._gated_in(rows)
        neurons = self._threshold.neurons_layout if gated else 0
        return *banks, (gated, neurons, self._entries.by_site is not None)

    @property
    def entries(self) -> Entries:
        """What acts where; a graph puts its static copy here. Only if something acts."""
        return self._entries

    @entries.setter
    def entries(self, entries: Entries) -> None:
        self._entries = entries

    def embed(self, hidden: Tensor, token_ids: Tensor, scale: float = 1.0) -> None:  # noqa: D102
        self.apply(-1, Group.EMBED, hidden, token_ids)
        super().embed(hidden, token_ids, scale)
        for start, count, slot, first in self._virtual:
            self._virtual_bank.embed(slot, first, hidden[start : start + count])

    def store(self, layer: int, places: Tensor, cache: KVCache) -> None:  # noqa: D102
        for start, count, slot, first in self._virtual:
            self._virtual_bank.store(layer, slot, first, places[start : start + count], cache)

    def touches(self, layer: int, group: Group) -> bool:  # noqa: D102
        at = point(layer, group)
        return any(mask >> at & 1 for _, mask in self._active)

    def touch(self, layer: int, group: Group, x: Tensor) -> None:  # noqa: D102
        if group is Group.HEAD_IN:
            self.apply_to_logits(group, x, x)
        else:
            self.apply(layer, group, x, x)

    def linear(  # noqa: D102
        self, layer: int, group: Group, x: Tensor, weight: LinearWeight, bias: Tensor | None
    ) -> Tensor:
        y = self._base_linear(layer, group, x, weight, bias)
        self.apply(layer, group, y, x)
        return y

    def _base_linear(
        self, layer: int, group: Group, x: Tensor, weight: LinearWeight, bias: Tensor | None
    ) -> Tensor:
        """The base's products, of inputs that adapters may have changed."""
        at = point(layer, group)
        if (self._sparse | self._turned) >> at & 1:
            inputs: dict[Module, Tensor] = {}
            for bank, mask in ((self._threshold, self._sparse), (self._rotation, self._turned)):
                if mask >> at & 1:
                    bank.change_inputs(layer, group, x, inputs, self._entries)
            return split_linear(self._shape, group, x, inputs, weight, bias)
        return linear(x, weight, bias)

    def gated(self, layer: int, x: Tensor, weights: MlpWeights) -> Tensor:  # noqa: D102
        at = point(layer, Group.GATE_UP)
        acting = [bank for bank, mask in self._active if mask >> at & 1]
        cuts = self._sparse >> point(layer, Group.ACT) & 1
        if cuts or not acting or acting[-1] is not self._low_rank:
            return super().gated(layer, x, weights)
        gate_up = self._base_linear(layer, Group.GATE_UP, x, weights.gate_up, weights.gate_up_bias)
        for bank in acting[:-1]:
            bank.apply(layer, Group.GATE_UP, gate_up, x, self._entries)
        # Nothing acts between the branches and the product: one pass over both.
        return self._low_rank.gated(layer, gate_up, x, self._entries, weights.activation)

    def gate(self, layer: int, gate_up: Tensor, activation: Activation) -> Tensor:  # noqa: D102
        if self._sparse >> point(layer, Group.ACT) & 1:
            return self._threshold.gate(layer, gate_up, self._entries, activation)
        return act_mul(gate_up, activation)

    def mlp(self, layer: int, x: Tensor, weights: MlpWeights) -> Tensor:  # noqa: D102
        if not self._skips_neurons(layer, x.shape[0]):
            return super().mlp(layer, x, weights)
        self.touch(layer, Group.MLP_IN, x)
        y, product = self._threshold.mlp(layer, x, weights, self._entries)
        self.apply(layer, Group.DOWN, y, product)
        return y

    def _gated_in(self, rows: int) -> int:
        """The points at which all rows of the step, and few, have a threshold."""
        return self._gated if rows == self._num_rows <= MAX_ROWS else 0

    def _skips_neurons(self, layer: int, rows: int) -> bool:
        """Do all rows have a threshold behind the gate, and nothing else inside the MLP?"""
        if not self._gated_in(rows) >> point(layer, Group.ACT) & 1:
            return False
        if not self._threshold.has_sparse_mlp(layer):
            return False
        inside = _bits(layer, Group.GATE_UP, Group.ACT, Group.INNER)
        linears = _bits(layer, Group.GATE_UP, Group.DOWN)
        return not (
            (self._sparse | self._turned) & linears
            or any(mask & inside for _, mask in self._active)
        )

    def head(self, logits: Tensor, x: Tensor) -> None:  # noqa: D102
        self.apply_to_logits(Group.HEAD, logits, x)

    def apply(self, layer: int, group: Group, y: Tensor, x: Tensor) -> None:
        """Let the adapters act on the output of a group, or on an activation, in place.

        Args:
            layer: number of the decoder layer.
            group: which.
            y: [T, columns of the group], contiguous: the output, bias included.
            x: [T, in], contiguous: what the group read.
        """
        at = point(layer, group)
        for bank, mask in self._active:
            if mask >> at & 1:
                bank.apply(layer, group, y, x, self._entries)

    def apply_to_logits(self, group: Group, y: Tensor, x: Tensor) -> None:
        """As `apply`, at HEAD or HEAD_IN: the rows are those named by `logit_rows`."""
        at = point(-1, group)
        for bank, mask in self._active:
            if mask >> at & 1:
                entries = self._head_entries()
                if entries.slot.shape[0]:  # not len(): a graph that is recorded reads no number
                    bank.apply(-1, group, y, x, entries)

    def _head_entries(self) -> Entries:
        """The entries in rows of the logits; few adapters touch the head, so not built ahead."""
        if self._head is None:
            rows = self._logit_rows
            if rows is None:
                self._head = self._entries
            else:
                rows = rows.tolist() if isinstance(rows, Tensor) else rows
                mapped = []
                for start, count, slot, weight in self._uses:
                    first, last = bisect_left(rows, start), bisect_left(rows, start + count)
                    if first < last:
                        mapped.append((first, last - first, slot, weight))
                self._head = _build(mapped).to(self._entries.slot.device)
        return self._head


def _bits(layer: int, *groups: Group) -> int:
    return sum(1 << point(layer, group) for group in groups)


def _everywhere(per_slot: Sequence[int], uses: Sequence[RowUse]) -> int:
    """The points at which every use has an adapter that acts."""
    masks = (
        _touched(per_slot, {s for s, w in zip(use.slots, use.weights, strict=True) if w != 0})
        for use in uses
    )
    return reduce(and_, masks)


def _touched(per_slot: Sequence[int], slots: set[int]) -> int:
    return reduce(or_, (per_slot[slot] for slot in slots), 0)


def _build(uses: Sequence[tuple[int, int, int, Weight]]) -> Entries:
    """Entries of (first row, rows, slot, weight)."""
    tables = {i: w.column for i, (*_, w) in enumerate(uses) if isinstance(w, SiteWeights)}
    whole = [1.0 if isinstance(weight, SiteWeights) else weight for *_, weight in uses]
    entries = Entries(
        slot=torch.tensor([use[2] for use in uses], dtype=torch.int32),
        weight=torch.tensor(whole, dtype=torch.float32),
        row_start=torch.tensor([use[0] for use in uses], dtype=torch.int32),
        row_count=torch.tensor([use[1] for use in uses], dtype=torch.int32),
    )
    if tables:
        columns = torch.stack(list(tables.values()), 1)
        entries.by_site = entries.weight.repeat(columns.shape[0], 1)
        entries.by_site[:, list(tables)] = columns
    return entries
