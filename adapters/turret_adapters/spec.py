"""The instruction set: sites of a decoder, components of an adapter, kinds that compile them.

A *site* is one place of the model where an adapter may act. A *component* is one use of a
primitive at one site. A *kind* is a front end: it detects a published format and compiles it into
components. Kinds know no banks, banks know no kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from turret_adapters.positions import Positions
from turret_adapters.sites import LINEARS, POST_NORMED, READERS, UNLAYERED, Module, Site

if TYPE_CHECKING:
    from torch import Tensor

    from turret_adapters.components import Component
    from turret_adapters.files import AdapterFiles


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
        bias: reads the base's bias at a linear, [out]; None where it has none.
        gain: reads the weight of the norm before an activation (NORMED, HEAD_IN), [n], or of that
            behind q or k, [head_dim], as it is stored.
        gain_offset: what the norms add to their weights: 1 in Gemma.
        has_qk_norms: the heads of q and k are normed.
        has_post_norms: o's and down's outputs are normed, too: the base has POST_NORMED.
        activation: of the MLP's gate: "silu", or "gelu_tanh".
        embed_scale: what the embedded tokens are multiplied by, behind the site EMBED.
        head_dim: width of one attention head; 0 where unknown.
        is_quantized: the linears of the layers were rounded to int8, int4 or fp8; `weight` reads
            them dequantised, so that they equal no copy of the model's own.
        max_rank: rank rows that there are per site. Formats that multiply ranks ask before they
            allocate: a file of some kilobytes may name a branch of gigabytes.
    """

    num_layers: int
    dims: Mapping[Module, tuple[int, int]]
    has_bias: frozenset[Module] = frozenset()
    name: str = ""
    tied_head: bool = False
    weight: Callable[[Site], Tensor] | None = None
    bias: Callable[[Site], Tensor | None] | None = None
    gain: Callable[[Site], Tensor] | None = None
    gain_offset: float = 0.0
    has_qk_norms: bool = False
    has_post_norms: bool = False
    activation: str = "silu"
    embed_scale: float = 1.0
    head_dim: int = 0
    is_quantized: bool = False
    max_rank: int = 4096

    def width(self, module: Module) -> int:
        """Features that come out of a module, or that an activation has."""
        reader = READERS.get(module)
        return self.dims[module][1] if reader is None else self.dims[reader][0]

    def size(self, module: Module) -> tuple[int, int]:
        """Features in and out; an activation's are the same."""
        width = self.width(module)
        return self.dims.get(module, (width, width))

    def has(self, site: Site) -> bool:
        """Is there such a place in the base?"""
        known = READERS.get(site.module, site.module) in self.dims
        if site.module in UNLAYERED:
            return known and site.layer == -1
        if site.module in POST_NORMED and not self.has_post_norms:
            return False
        return known and 0 <= site.layer < self.num_layers

    def sites(self) -> list[Site]:
        """Every linear, the embedding and the head, in model order."""
        inner = [Site(layer, m) for layer in range(self.num_layers) for m in LINEARS]
        every = [Site(-1, Module.EMBED), *inner, Site(-1, Module.HEAD)]
        return [site for site in every if site.module in self.dims]


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled adapter: components on the host, ready for the banks.

    Attributes:
        kind: name of the kind that compiled it.
        components: in any order; several at one site add up.
        base_model: as the adapter's own config names it.
        notes: what a user may want to know, though nothing is refused.
        positions: where in a request it acts, None for everywhere.
        num_virtual_tokens: positions that it puts before the prompt.
    """

    kind: str
    components: tuple[Component, ...]
    base_model: str | None = None
    notes: tuple[str, ...] = field(default=())
    positions: Positions | None = None
    num_virtual_tokens: int = 0

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
        return max((c.rank for c in self.components), default=0)

    @property
    def primitives(self) -> list[str]:
        """Names of the primitives it uses, sorted: ["LowRank", "Offset"]."""
        return sorted({type(c).__name__ for c in self.components})

    @property
    def targets(self) -> list[str]:
        """Module names the program touches, in model order."""
        order = list(Module)
        return [str(m) for m in sorted({c.site.module for c in self.components}, key=order.index)]

    @property
    def sites(self) -> dict[str, str]:
        """The layers of each target, runs folded: {"q_proj": "0-11, 20"}; "" for the head's."""
        layers: dict[str, set[int]] = {target: set() for target in self.targets}
        for component in self.components:
            layers[component.site.module].add(component.site.layer)
        return {target: ranges(sorted(found)) for target, found in layers.items()}


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers with runs folded: [0, 1, 2, 5] -> "0-2, 5"; negative ones are left out."""
    runs: list[list[int]] = []
    for number in numbers:
        if number < 0:
            continue
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


@dataclass(frozen=True, slots=True)
class Kind:
    """A front end.

    Attributes:
        name: "lora".
        detect: is this folder ours? Reads names and config only.
        compile: validated, finite components on the CPU, in the stored or a wider dtype; raises
            AdapterError with what, why and fix.
        guess_shape: the smallest base that the files fit, for `inspect` without a base.
        files: the files that make up an adapter of this kind; its digest covers them. "*.gguf" is
            the only file in the folder that ends so.
        list_files: the same for one folder, where they are not the same for every folder.
        repeats_base: is a tensor, by name, a copy of the base's? The digest samples copies.
        reads_metadata: the strings in the header of its safetensors mean something, so its digest
            covers them, too.
    """

    name: str
    detect: Callable[[AdapterFiles], bool]
    compile: Callable[[AdapterFiles, ModelShape], Program]
    guess_shape: Callable[[AdapterFiles], ModelShape]
    files: tuple[str, ...] = ("adapter_config.json", "adapter_model.safetensors")
    list_files: Callable[[AdapterFiles], tuple[str, ...]] | None = None
    repeats_base: Callable[[str], bool] | None = None
    reads_metadata: bool = False

    def files_in(self, files: AdapterFiles) -> tuple[str, ...]:
        """The files in this folder that make up the adapter."""
        return self.files if self.list_files is None else self.list_files(files)
