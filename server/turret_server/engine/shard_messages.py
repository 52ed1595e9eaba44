"""What rank 0 of a tensor-parallel engine says to the other processes (msgspec, no pickle).

Everything for one follower travels on one pipe and is obeyed in order, so that a step finds the
adapters that were stored before it. Tensors are frames of their own behind the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from turret_adapters.components import (
    Component,
    InputRotation,
    LowRank,
    Offset,
    Prefix,
    RowDelta,
    Scale,
    SoftPrompt,
    SparseDelta,
    TernaryLowRank,
    Threshold,
)
from turret_adapters.plan import RowUse
from turret_adapters.site_weights import SiteWeights
from turret_adapters.spec import Module, Site
from turret_adapters.weight_table import Weight
from turret_server.engine.settings import EngineSettings

_COMPONENTS = {
    component.__name__: component
    for component in (
        InputRotation,
        LowRank,
        Offset,
        Prefix,
        RowDelta,
        Scale,
        SoftPrompt,
        SparseDelta,
        TernaryLowRank,
        Threshold,
    )
}

# ---------------------------------------------------------------- rank 0 -> follower


class Start(msgspec.Struct, frozen=True):
    """The first message: who the follower is, and where it meets the others."""

    settings: EngineSettings
    rank: int
    rendezvous: str  # a file, see `models.peers.Peers`


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Make a cache of so many blocks; steps may follow."""

    num_blocks: int


class Use(msgspec.Struct, frozen=True, array_like=True):
    """A `turret_adapters.plan.RowUse`."""

    row_start: int
    row_count: int
    slots: tuple[int, ...]
    weights: tuple[Weight, ...]
    virtual: int

    @classmethod
    def of(cls, use: RowUse) -> Use:
        """As it is sent."""
        weights = tuple(w.table if isinstance(w, SiteWeights) else w for w in use.weights)
        return cls(use.row_start, use.row_count, use.slots, weights, use.virtual)

    def row_use(self, num_layers: int) -> RowUse:
        """As it was."""
        weights = tuple(SiteWeights.of(weight, num_layers) for weight in self.weights)
        return RowUse(self.row_start, self.row_count, self.slots, weights, self.virtual)


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Run the decoder: `BatchBuilder.arrays`, the rows of the logits, and who acts."""

    token_ids: bytes
    positions: bytes
    slots: bytes
    query_start: bytes
    context_len: bytes
    block_table: bytes
    logit_rows: list[int] | None
    uses: list[Use]

    @classmethod
    def of(
        cls, arrays: dict[str, np.ndarray], logit_rows: Tensor | None, uses: Sequence[RowUse]
    ) -> Step:
        """The message for a batch."""
        return cls(
            **{name: array.tobytes() for name, array in arrays.items()},
            logit_rows=None if logit_rows is None else logit_rows.tolist(),
            uses=[Use.of(use) for use in uses],
        )


class PackedTensor(msgspec.Struct, frozen=True, array_like=True):
    """What the bytes of a frame are."""

    field: str
    dtype: str
    shape: tuple[int, ...]


class PackedComponent(msgspec.Struct, frozen=True, array_like=True):
    """A component; its tensors are the message's next frames."""

    name: str
    layer: int
    module: str
    numbers: dict[str, Any]
    tensors: tuple[PackedTensor, ...]


class Put(msgspec.Struct, frozen=True, tag="put"):
    """Store an adapter's shard in an empty slot; answer Stored."""

    slot: int
    components: list[PackedComponent]


class Clear(msgspec.Struct, frozen=True, tag="clear"):
    """Free a slot."""

    slot: int


Command = Begin | Step | Put | Clear

# ---------------------------------------------------------------- follower -> rank 0


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The shard of the base is there, and so many bytes are for its cache."""

    kv_bytes: int


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """Answer to Put: was there room, or what went wrong?"""

    fits: bool
    error: str = ""


Answer = Loaded | Stored

# ---------------------------------------------------------------- components


def pack(components: Sequence[Component]) -> tuple[list[PackedComponent], list[memoryview]]:
    """Components as messages, and their tensors as frames."""
    packed: list[PackedComponent] = []
    frames: list[memoryview] = []
    for component in components:
        numbers: dict[str, Any] = {}
        tensors: list[PackedTensor] = []
        for field in fields(component):
            value = getattr(component, field.name)
            if isinstance(value, Tensor):
                dtype = str(value.dtype).removeprefix("torch.")
                tensors.append(PackedTensor(field.name, dtype, tuple(value.shape)))
                frames.append(value.contiguous().flatten().view(torch.uint8).numpy().data)
            elif field.name != "site":
                numbers[field.name] = value
        site, name = component.site, type(component).__name__
        packed.append(PackedComponent(name, site.layer, site.module, numbers, tuple(tensors)))
    return packed, frames


def unpack(packed: Sequence[PackedComponent], frames: Sequence[bytes]) -> list[Component]:
    """What `pack` was given."""
    components, left = [], iter(frames)
    for part in packed:
        values: dict[str, Any] = {t.field: _tensor(next(left), t) for t in part.tensors}
        site = Site(part.layer, Module(part.module))
        components.append(_COMPONENTS[part.name](site, **part.numbers, **values))
    return components


def _tensor(frame: bytes, tensor: PackedTensor) -> Tensor:
    dtype = getattr(torch, tensor.dtype)
    if not frame:
        return torch.empty(tensor.shape, dtype=dtype)
    return torch.frombuffer(bytearray(frame), dtype=dtype).view(tensor.shape)
