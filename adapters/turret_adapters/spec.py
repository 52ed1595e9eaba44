"""The instruction set: sites of a decoder, components of an adapter, kinds that compile them.

A *site* is one place of the model where an adapter may act. A *component* is one use of a
primitive at one site. A *kind* is a front end: it detects a published format and compiles it into
components. Kinds know no banks, banks know no kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from turret_adapters.files import AdapterFiles


class Module(StrEnum):
    """Where in a decoder a site lies; the last part of its name."""

    Q = "q_proj"
    K = "k_proj"
    V = "v_proj"
    O = "o_proj"  # noqa: E741
    GATE = "gate_proj"
    UP = "up_proj"
    DOWN = "down_proj"
    EMBED = "embed_tokens"
    HEAD = "lm_head"


LINEARS = (Module.Q, Module.K, Module.V, Module.O, Module.GATE, Module.UP, Module.DOWN)


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One linear, the embedding or the head. `layer` is -1 for embedding and head."""

    layer: int
    module: Module

    def __str__(self) -> str:
        return self.module if self.layer < 0 else f"layers.{self.layer}.{self.module}"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What an adapter must fit: the sizes of the base model's sites.

    Attributes:
        num_layers: decoder layers.
        dims: (in, out) features per module; the embedding is (vocab, hidden), the head
            (hidden, vocab). A module that is missing here is no site.
        has_bias: linears of the base that carry a bias.
        name: name or path of the base model, for messages.
        tied_head: the head shares its weight with the embedding.
        weight: reads the base's weight at a site ([out, in]; the embedding [vocab, hidden]), for
            formats that repeat it or depend on it; None where no base is at hand.
    """

    num_layers: int
    dims: Mapping[Module, tuple[int, int]]
    has_bias: frozenset[Module] = frozenset()
    name: str = ""
    tied_head: bool = False
    weight: Callable[[Site], Tensor] | None = None

    def sites(self) -> list[Site]:
        """Every site, in model order."""
        inner = [Site(layer, m) for layer in range(self.num_layers) for m in LINEARS]
        every = [Site(-1, Module.EMBED), *inner, Site(-1, Module.HEAD)]
        return [site for site in every if site.module in self.dims]


@dataclass(frozen=True, slots=True)
class LowRank:
    """`y += weight * b.T @ (a @ x)`: the low-rank branch, its scale folded into `b`.

    Attributes:
        site: where it acts.
        a: [rank, in_features]; at the embedding [rank, vocab].
        b: [rank, out_features] (PEFT's lora_B transposed: one contiguous row per rank).
    """

    site: Site
    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Number of rank rows."""
        return self.a.shape[0]

    @property
    def num_parameters(self) -> int:
        """Elements of both factors."""
        return self.a.numel() + self.b.numel()

    @property
    def num_bytes(self) -> int:
        """Bytes of both factors."""
        return self.a.nbytes + self.b.nbytes

    def to(self, dtype: torch.dtype) -> LowRank:
        """Both factors in the served dtype."""
        return LowRank(self.site, self.a.to(dtype), self.b.to(dtype))


@dataclass(frozen=True, slots=True)
class Offset:
    """`y += weight * vector`: an offset after the bias.

    `vector` is [out_features]. When `absolute` is true the published tensor replaces the base's
    bias, and the bank subtracts the base's own value (zero where the base has none).
    """

    site: Site
    vector: Tensor
    absolute: bool = False

    @property
    def num_parameters(self) -> int:
        """Elements of the vector."""
        return self.vector.numel()

    @property
    def num_bytes(self) -> int:
        """Bytes of the vector."""
        return self.vector.nbytes

    def to(self, dtype: torch.dtype) -> Offset:
        """Itself: an absolute vector is rounded only after the base's bias is subtracted."""
        return self


Component = LowRank | Offset


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled adapter: components on the host, ready for the banks.

    Attributes:
        kind: name of the kind that compiled it.
        components: in any order; several at one site add up.
        base_model: as the adapter's own config names it.
        notes: what a user may want to know, though nothing is refused.
    """

    kind: str
    components: tuple[Component, ...]
    base_model: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def num_parameters(self) -> int:
        """Elements of all components."""
        return sum(c.num_parameters for c in self.components)

    @property
    def num_bytes(self) -> int:
        """Bytes of all components."""
        return sum(c.num_bytes for c in self.components)

    @property
    def rank(self) -> int:
        """The largest rank, 0 without low-rank components."""
        return max((c.rank for c in self.components if isinstance(c, LowRank)), default=0)

    @property
    def targets(self) -> list[str]:
        """Module names the program touches, in model order."""
        order = list(Module)
        return [str(m) for m in sorted({c.site.module for c in self.components}, key=order.index)]


@dataclass(frozen=True, slots=True)
class Kind:
    """A front end.

    Attributes:
        name: "lora".
        detect: is this folder ours? Reads names and config only.
        compile: validated, finite components on the CPU, in the stored or a wider dtype; raises
            AdapterError with what, why and fix.
        guess_shape: the smallest base that the files fit, for `inspect` without a base.
        files: the files that make up an adapter of this kind; its digest covers them.
    """

    name: str
    detect: Callable[[AdapterFiles], bool]
    compile: Callable[[AdapterFiles, ModelShape], Program]
    guess_shape: Callable[[AdapterFiles], ModelShape]
    files: tuple[str, ...] = ("adapter_config.json", "adapter_model.safetensors")
