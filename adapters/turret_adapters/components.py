"""The primitives: what a compiled adapter is made of.

Everywhere `weight` is the request's: it scales the *change* that a component makes, so 0 is the
base, 1 the adapter as it was trained, and values between (or beyond) lie on the line through both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from turret_adapters.spec import Site


@dataclass(frozen=True, slots=True)
class Component:
    """One use of a primitive at one site."""

    site: Site

    @property
    def rank(self) -> int:
        """Rank rows that it takes, 0 for most."""
        return 0

    @property
    def tensors(self) -> list[Tensor]:
        """Its tensors."""
        values = (getattr(self, f.name) for f in fields(self))
        return [value for value in values if isinstance(value, Tensor)]

    @property
    def num_parameters(self) -> int:
        """Elements of all its tensors."""
        return sum(t.numel() for t in self.tensors)

    @property
    def num_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(t.nbytes for t in self.tensors)

    def to(self, dtype: torch.dtype) -> Self:
        """As the banks want it in this served dtype; most keep float32."""
        del dtype
        return self

    def pinned(self) -> Self:
        """In memory that a GPU reads by itself, beside whatever the processor does."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: x.pin_memory() for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True, slots=True)
class LowRank(Component):
    """`y += weight * b.T @ (a @ x)`: the low-rank branch at a linear, its scale folded into `b`.

    At BLOCK `x` is `y` before the step's components changed it.

    Attributes:
        site: where it acts.
        a: [rank, in_features]; at the embedding [rank, vocab].
        b: [rank, out_features] (PEFT's lora_B transposed: one contiguous row per rank).
        num_experts: N > 0 makes the branch a mixture chosen by every token (LoRAMoE): the last N
            rows of `a` are a gate, softmax over them weighs N equal groups of the rows before, and
            the last N rows of `b` are not read.
        published_scale: the alpha / r that `b` contains, where `a` and `b` are otherwise the
            published factors; None where they were computed.
    """

    a: Tensor
    b: Tensor
    num_experts: int = 0
    published_scale: float | None = None

    @property
    def rank(self) -> int:
        """Number of rank rows."""
        return self.a.shape[0]

    def to(self, dtype: torch.dtype) -> LowRank:
        """Both factors in the served dtype."""
        return replace(self, a=self.a.to(dtype), b=self.b.to(dtype))


@dataclass(frozen=True, slots=True)
class TernaryLowRank(Component):
    """A low-rank branch of a linear whose factors are -1, 0 or 1 times a scale, in two bits each.

    Attributes:
        site: a linear of a layer, or the head.
        a: int16 [rank, words], `pack_ternary` of [rank, in_features].
        b: int16 [rank, words], likewise of [rank, out_features].
        scale: float32 [rank], what 1 stands for in `a`, times what it stands for in `b`.
        in_features, out_features: values of a row.
    """

    a: Tensor
    b: Tensor
    scale: Tensor
    in_features: int
    out_features: int

    @property
    def rank(self) -> int:
        """Number of rank rows."""
        return self.a.shape[0]

    @property
    def num_parameters(self) -> int:
        """Elements of both factors."""
        return self.rank * (self.in_features + self.out_features)


@dataclass(frozen=True, slots=True)
class Offset(Component):
    """`y += weight * vector`, after the bias of a linear, or at an activation.

    `vector` is [width of the site]. When `absolute` is true the published tensor replaces the
    base's bias, and the bank subtracts the base's own value (zero where the base has none).
    """

    vector: Tensor
    absolute: bool = False


@dataclass(frozen=True, slots=True)
class Scale(Component):
    """`y += weight * ((vector - 1) * y + turn * partner(y))`; without `turn`, just `y *= vector`.

    At the output of a linear (bias included) or at an activation. A request may have one scale per
    site, because two do not commute with what others add between them.

    Attributes:
        site: where it acts.
        vector: float32 [width].
        turn: float32 [width] or None. The features lie in groups of `2 * distance`; the partner of
            a feature is the one `distance` further on in the group's first half, or `distance`
            before in its second (RoAd; the sign of the rotation lies in `turn`).
        distance: see `turn`.
        before_deltas: it scales what the base computes, not what other components add there.
    """

    vector: Tensor
    turn: Tensor | None = None
    distance: int = 0
    before_deltas: bool = False


@dataclass(frozen=True, slots=True)
class Threshold(Component):
    """`x = x if |x| > value else 0`: activation sparsity. It has no weight but 0 and 1.

    At ACT it thresholds act(gate), before it meets `up` (CATS). At a linear it thresholds that
    linear's *input* (TEAL), for the base's product alone: deltas read the whole input.
    """

    value: float

    @property
    def num_parameters(self) -> int:
        """One number."""
        return 1

    @property
    def num_bytes(self) -> int:
        """As stored in the bank."""
        return 4


@dataclass(frozen=True, slots=True)
class InputRotation(Component):
    """`x + weight * x D` in the place of a linear's input `x`, for the base's product alone.

    Deltas read `x` itself, so the changes of several adapters add up, rotations included.

    Attributes:
        site: a linear of a layer.
        blocks: float32 [in / b, b, b], the blocks of D = R - I, or [1, b, b], the same everywhere.
    """

    blocks: Tensor


@dataclass(frozen=True, slots=True)
class SparseDelta(Component):
    """`y += weight * S x`, S a sparse change of a linear's weight.

    Attributes:
        site: a linear or the head.
        rows: int64 [out + 1], where each output's values begin (CSR).
        columns: int32 [nnz], inputs, in any order inside an output; repeats add up.
        values: [nnz], float32 or the served dtype.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def from_entries(
        cls, site: Site, outputs: Tensor, inputs: Tensor, values: Tensor, num_outputs: int
    ) -> SparseDelta:
        """The change that adds `values` [nnz] at (outputs, inputs), in any order."""
        outputs, inputs = outputs.int(), inputs.int()
        if (outputs.diff() < 0).any():
            outputs, order = outputs.sort(stable=True)
            inputs, values = inputs[order], values[order]
        rows = torch.zeros(num_outputs + 1, dtype=torch.int64)
        torch.cumsum(outputs.bincount(minlength=num_outputs), 0, out=rows[1:])
        return cls(site, rows, inputs, values.float())

    def to(self, dtype: torch.dtype) -> SparseDelta:
        """The values in the served dtype."""
        return replace(self, values=self.values.to(dtype))


@dataclass(frozen=True, slots=True)
class RowDelta(Component):
    """Changed rows of the embedding, or of the head: `W[ids] += weight * delta`.

    Attributes:
        site: EMBED or HEAD.
        ids: int64 [r], ascending, without repetition.
        delta: float32 [r, hidden].
    """

    ids: Tensor
    delta: Tensor


@dataclass(frozen=True, slots=True)
class SoftPrompt(Component):
    """Virtual tokens before the prompt, given by their embeddings; no weight but 0 and 1.

    Attributes:
        site: EMBED.
        embeddings: float32 [m, hidden].
    """

    embeddings: Tensor

    def to(self, dtype: torch.dtype) -> SoftPrompt:
        """In the served dtype."""
        return replace(self, embeddings=self.embeddings.to(dtype))


@dataclass(frozen=True, slots=True)
class Prefix(Component):
    """Keys and values of virtual tokens before the prompt, in one layer; no weight but 0 and 1.

    Attributes:
        site: K of the layer.
        keys: float32 [m, kv_heads * head_dim], as they lie in the cache: position and rotation are
            in them already.
        values: float32 [m, kv_heads * head_dim].
    """

    keys: Tensor
    values: Tensor

    def to(self, dtype: torch.dtype) -> Prefix:
        """In the served dtype."""
        return replace(self, keys=self.keys.to(dtype), values=self.values.to(dtype))


C = TypeVar("C", bound=Component)


def by_site(components: Iterable[C]) -> dict[Site, list[C]]:
    """Those of each site, in their order."""
    found: defaultdict[Site, list[C]] = defaultdict(list)
    for component in components:
        found[component.site].append(component)
    return found
