"""All banks of a device, filled and emptied together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from turret_adapters.banks.low_rank import LowRankBank
from turret_adapters.banks.offset import OffsetBank
from turret_adapters.banks.rotation import RotationBank
from turret_adapters.banks.row_delta import RowDeltaBank
from turret_adapters.banks.scale import ScaleBank
from turret_adapters.banks.sparse_delta import SparseDeltaBank
from turret_adapters.banks.ternary import TernaryBank
from turret_adapters.banks.threshold import ThresholdBank
from turret_adapters.banks.virtual import VirtualBank
from turret_adapters.components import Component
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.groups import Group
from turret_adapters.spec import ModelShape, Site
from turret_kernels.entries import Entries

Demand = tuple[Mapping[Site, int], ...]  # one per bank


class Bank(Protocol):
    """Device residency of one primitive. One thread puts and clears, another applies."""

    touched: list[int]  # per slot, the bits `point(layer, group)` of the groups it acts on
    capturable: bool  # what it launches are native kernels alone, or Triton's

    @property
    def layout(self) -> int:
        """Changes when its kernels would be launched on other memory."""
        ...

    def takes(self, component: Component) -> bool:
        """Is it stored here?"""
        ...

    def demand(self, components: Sequence[Any]) -> Mapping[Site, int]:
        """What an adapter takes of the bank, per site."""
        ...

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Raise AdapterUnsupported if adapters of these demands can never run together."""

    def put(self, slot: int, components: Sequence[Any]) -> bool:
        """Store all of them for an empty slot, or store nothing and return False."""
        ...

    def clear(self, slot: int) -> None:
        """Forget a slot."""


class ActingBank(Bank, Protocol):
    """A bank whose components change an output or an activation in place."""

    def apply(self, layer: int, group: Group, y: Tensor, x: Tensor, entries: Entries) -> None:
        """Act on `y`, the output of a group that read `x`, in place."""


class DeviceBanks:
    """The banks of every primitive, by slot.

    Args:
        shape: the base model.
        num_slots: adapters that can be resident at once.
        max_rank_rows: rank rows per site.
        device: where everything lives.
        dtype: the served dtype.
        base_bias: the base's own bias at a site, None where it has none.
        max_delta_bytes: bytes of all sparse deltas, again as many of all changed rows, and of all
            input rotations.
        max_neuron_bytes: bytes of all second copies of MLP weights (CATS).
        max_ternary_rows: rank rows per site for ternary adapters, beside the others.

    Attributes:
        acting: in the order in which they act at a site (composition: docs/adapters.md).
        threshold: thresholds, which the decoder asks for where it computes.
        rotation: rotated inputs, likewise.
        virtual: virtual tokens, which the plan writes where the engine has made room for them.
        shape, num_slots: as given.
    """

    def __init__(
        self,
        shape: ModelShape,
        num_slots: int,
        max_rank_rows: int,
        device: torch.device,
        dtype: torch.dtype,
        base_bias: Callable[[Site], Tensor | None],
        max_delta_bytes: int = 1 << 30,
        max_neuron_bytes: int = 1 << 30,
        max_ternary_rows: int = 0,
    ):
        self.shape, self.num_slots = shape, num_slots
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.low_rank = LowRankBank(shape, num_slots, max_rank_rows, device, dtype)
        self.threshold = ThresholdBank(shape, num_slots, device, dtype, max_neuron_bytes)
        self.rotation = RotationBank(shape, num_slots, max_delta_bytes, device, dtype)
        self.virtual = VirtualBank(num_slots, device, dtype)
        self.acting: tuple[ActingBank, ...] = (
            ScaleBank(shape, num_slots, device, before_deltas=True),
            self.low_rank,
            TernaryBank(shape, num_slots, max_ternary_rows, device),
            SparseDeltaBank(shape, num_slots, max_delta_bytes, device, dtype),
            RowDeltaBank(shape, num_slots, max_delta_bytes, device, dtype),
            ScaleBank(shape, num_slots, device, before_deltas=False),
            OffsetBank(shape, num_slots, device, base_bias),
        )
        self._banks: tuple[Bank, ...] = (
            *self.acting,
            self.threshold,
            self.rotation,
            self.virtual,
        )

    def demand(self, components: Sequence[Component]) -> Demand:
        """What an adapter takes of every bank.

        Raises:
            AdapterUnsupported: no bank holds one of the components.
        """
        strangers = {
            type(c).__name__ for c in components if not any(b.takes(c) for b in self._banks)
        }
        if strangers:
            raise AdapterUnsupported(
                "the adapter cannot become resident",
                f"it uses {', '.join(sorted(strangers))}, which no bank holds",
                "Report it: its kind and this server do not fit together.",
            )
        return tuple(bank.demand(_of(bank, components)) for bank in self._banks)

    def check_fits(self, demands: Sequence[Demand]) -> None:
        """Can adapters of these demands be resident together, with the banks to themselves?

        Raises:
            AdapterUnsupported: they exceed the slots or a bank.
        """
        if len(demands) > self.num_slots:
            raise AdapterUnsupported(
                "the adapters cannot become resident together",
                f"they are {len(demands)}, and there are {self.num_slots} slots",
                f"Restart with --max-resident-adapters {len(demands)} or more.",
            )
        for bank, of_bank in zip(self._banks, zip(*demands, strict=True), strict=True):
            bank.check_fits(of_bank)
        self._check_inputs(demands)

    def _check_inputs(self, demands: Sequence[Demand]) -> None:
        cut, turned = (
            {site for demand in demands for site in demand[self._banks.index(bank)]}
            for bank in (self.threshold, self.rotation)
        )
        if cut & turned:
            raise AdapterUnsupported(
                "the adapters cannot act on one request together",
                f"one of them thresholds the input of {min(cut & turned)}, another rotates it, and "
                "the result would depend on their order",
                "Name one of them.",
            )

    def put(self, slot: int, components: Sequence[Component]) -> bool:
        """Store an adapter in an empty slot; all of it, or nothing where the room does not suffice.

        The slot must not be used by any step before this has returned true.
        """
        try:
            with self._beside_steps():
                fits = all(bank.put(slot, _of(bank, components)) for bank in self._banks)
            if fits:
                return True
        except BaseException:  # out of memory: leave no trace, then tell
            self.clear(slot)
            raise
        self.clear(slot)
        return False

    def clear(self, slot: int) -> None:
        """Free a slot. No running step may use it."""
        with self._beside_steps():
            for bank in self._banks:
                bank.clear(slot)

    @contextmanager
    def _beside_steps(self) -> Iterator[None]:
        """What is copied to a GPU inside waits for no step, and is there at the end."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()


def _of(bank: Bank, components: Sequence[Component]) -> list[Component]:
    return [c for c in components if bank.takes(c)]
