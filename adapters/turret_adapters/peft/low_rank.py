"""What kinds of PEFT share that become one low-rank change per linear, and biases beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from turret_adapters.components import Component, LowRank, Offset
from turret_adapters.errors import quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.roles import RoleOf, SiteTensors
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors
from turret_adapters.spec import ModelShape, Module, Program, Site
from turret_adapters.tensor_file import is_finite

FULL_WEIGHTS = "it stores full weights of modules; low-rank changes and offsets can be served"
# Of every such config: read here, or without effect on what the loaded adapter computes.
COMMON_FIELDS = frozenset(
    {
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "init_weights",
        "layers_pattern",
        "layers_to_transform",
        "r",
        "target_modules",
    }
)
REFUSED_FIELDS = {"modules_to_save": FULL_WEIGHTS}

Factors = tuple[Tensor, Tensor]  # a [rank, in] and b [rank, out], the scale folded in
# Far more than LoRA needs; worth a word to the user who did not choose it.
_LARGE_RANK = 128
# The factors of one adapted module, from (tensors, site, in, out).
ReadFactors = Callable[[PeftTensors, Site, int, int], Factors]


@dataclass(frozen=True, slots=True)
class LowRankFormat:
    """A format that stores something per linear, and means a low-rank change by it.

    Attributes:
        kind: name of the kind.
        role_of: says what a tensor is to its module.
        roles: what every adapted module stores.
        known: fields of the config, beyond `COMMON_FIELDS`, that are read or have no effect.
        biases: values of `bias` beside "none" and "all": biases of the adapted linears.
        adapts_embedding: it may act on the embedding, too.
    """

    kind: str
    role_of: RoleOf
    roles: tuple[str, ...]
    known: frozenset[str]
    biases: tuple[str, ...]
    adapts_embedding: bool = False

    def config(self, files: AdapterFiles) -> PeftConfig:
        """Its adapter_config.json, without fields that would change its meaning."""
        config = PeftConfig(files)
        config.check_fields(COMMON_FIELDS | self.known, REFUSED_FIELDS)
        return config

    def compile(
        self,
        files: AdapterFiles,
        shape: ModelShape,
        config: PeftConfig,
        read: ReadFactors,
        roles: tuple[str, ...] = (),
    ) -> Program:
        """The program: a low-rank change per adapted linear, and the biases that the config names.

        Args:
            files: the adapter's folder.
            shape: the base.
            config: as `config` returned it.
            read: the factors of one module.
            roles: what every adapted module stores, where the config decides.

        Raises:
            AdapterError: as PeftTensors, or as `read`.
        """
        targets = Targets(config)
        bias = config.choice("bias", "none", ("none", "all", *self.biases))
        tensors = PeftTensors(files, shape, config, self.role_of)

        def branch(site: Site, _: SiteTensors) -> LowRank:
            return LowRank(site, *read(tensors, site, *shape.dims[site.module]))

        return compile_branches(
            self.kind,
            tensors,
            targets,
            lambda site, path: roles or self.roles,
            branch,
            bias=bias,
            adapts_embedding=self.adapts_embedding,
        )


def compile_branches(
    kind: str,
    tensors: PeftTensors,
    targets: Targets,
    roles: Callable[[Site, str], tuple[str, ...]],
    branch: Callable[[Site, SiteTensors], LowRank | None],
    *,
    bias: str = "none",
    adapts_embedding: bool = False,
) -> Program:
    """Compile the branch of every adapted linear, and the biases that were trained with it.

    Args:
        kind: name of the kind.
        tensors: the adapter's.
        targets: which modules its config names.
        roles: the tensors that an adapted linear needs, from its site and path.
        branch: reads them; None where they add nothing.
        bias: "none", "all", or PEFT's "…_only" for the biases of adapted linears.
        adapts_embedding: the embedding may have a branch, too.

    Raises:
        AdapterError: config, file and base disagree, or the branch overflows float32.
    """
    components: list[Component] = []
    for site in tensors.shape.sites():
        found = tensors.at(site)
        may_be = adapts_embedding or site.module is not Module.EMBED
        is_adapted = may_be and tensors.is_adapted(site, roles(site, found.path), targets)
        if is_adapted and (part := branch(site, found)) is not None:
            components.append(low_rank(tensors, site, part.a, part.b))
        # A bias that is not wanted stays unused and is refused as such.
        if bias == "all" or (bias != "none" and is_adapted):
            components += new_bias(tensors, site)
        tensors.ignore_base_copy(site)
    largest = max(components, key=lambda component: component.rank, default=None)
    if largest is not None and largest.rank > _LARGE_RANK:
        tensors.notes.append(
            f"at {largest.site} it is served like a LoRA of rank {largest.rank}, and costs as much"
        )
    return tensors.program(kind, components, targets=targets)


def low_rank(tensors: PeftTensors, site: Site, a: Tensor, b: Tensor) -> LowRank:
    """The component of two computed factors.

    Raises:
        AdapterMalformed: computing them overflowed.
    """
    if not (is_finite(a) and is_finite(b)):
        raise tensors.malformed(f"the change of {tensors.at(site).path} overflows float32")
    return LowRank(site, a.contiguous(), b.contiguous())


def new_bias(tensors: PeftTensors, site: Site) -> list[Offset]:
    """The bias that replaces the base's own at a linear, if one is stored.

    Raises:
        AdapterUnsupported: this base has none there.
    """
    key = tensors.at(site).keys.get("bias")
    if key is None:
        return []
    if site.module not in tensors.shape.has_bias:
        raise tensors.wrong_base(f"{quote(key)} replaces a bias that this base does not have")
    fan_out = tensors.shape.dims[site.module][1]
    return [Offset(site, tensors.read(key, (fan_out,)).float(), absolute=True)]
