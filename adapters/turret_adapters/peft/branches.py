"""Kinds that put one low-rank branch on every adapted linear: the part they have in common."""

from __future__ import annotations

from collections.abc import Callable

from turret_adapters.components import Component, LowRank, Offset
from turret_adapters.errors import quote
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, SiteTensors
from turret_adapters.spec import Module, Program, Site
from turret_adapters.tensor_file import is_finite

FULL_WEIGHTS = "it stores full weights of modules; low-rank changes and offsets can be served"

# Far more than LoRA needs; worth a word to the user who did not choose it.
_LARGE_RANK = 128


def compile_branches(
    kind: str,
    tensors: PeftTensors,
    targets: Targets,
    roles: Callable[[Site, str], tuple[str, ...]],
    branch: Callable[[Site, SiteTensors], LowRank | None],
    *,
    bias: str = "none",
) -> Program:
    """Compile the branch of every adapted linear, and the biases that were trained with it.

    Args:
        kind: name of the kind.
        tensors: the adapter's.
        targets: which modules its config names.
        roles: the tensors that an adapted linear needs, from its site and path.
        branch: reads them; None where they add nothing.
        bias: "none", "all", or PEFT's "…_only" for the biases of adapted linears.

    Raises:
        AdapterError: config, file and base disagree, or the branch overflows float32.
    """
    components: list[Component] = []
    for site in tensors.shape.sites():
        found = tensors.at(site)
        is_adapted = site.module is not Module.EMBED and tensors.is_adapted(
            site, roles(site, found.path), targets
        )
        if is_adapted and (part := branch(site, found)) is not None:
            if not (is_finite(part.a) and is_finite(part.b)):
                raise tensors.malformed(f"the branch at {found.path} overflows float32")
            components.append(part)
        # A bias that is not wanted stays unused and is refused as such.
        if "bias" in found.keys and (bias == "all" or (bias != "none" and is_adapted)):
            components.append(_bias(tensors, site, found.keys["bias"]))
        tensors.ignore_base_copy(site)
    largest = max(components, key=lambda component: component.rank, default=None)
    if largest is not None and largest.rank > _LARGE_RANK:
        tensors.notes.append(
            f"at {largest.site} it is served like a LoRA of rank {largest.rank}, and costs as much"
        )
    return tensors.program(kind, components, targets=targets)


def _bias(tensors: PeftTensors, site: Site, key: str) -> Offset:
    """The trained bias of a linear, which replaces the base's."""
    if site.module not in tensors.shape.has_bias:
        raise tensors.wrong_base(f"{quote(key)} replaces a bias that this base does not have")
    fan_out = tensors.shape.dims[site.module][1]
    return Offset(site, tensors.read(key, (fan_out,)).float(), absolute=True)
