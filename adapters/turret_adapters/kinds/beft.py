"""BEFT as PEFT saves it (arXiv 2509.15974): `y <- W x + b + v`, a bias added to linears."""

from __future__ import annotations

from turret_adapters.components import Component, Offset
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program

_REFUSED = {"modules_to_save": "it stores full weights of modules; offsets can be served"}
_KNOWN = frozenset({"init_weights", "target_modules"})
_ROLE = simple_role({"beft_bias": "offset"})


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    config = PeftConfig(files)
    config.check_fields(_KNOWN, _REFUSED)
    targets = Targets(config)
    tensors = PeftTensors(files, shape, config, _ROLE)
    components: list[Component] = []
    for site in shape.sites():
        if site.module is Module.EMBED:  # PEFT has no BEFT there
            continue
        tensors.ignore_base_copy(site)
        if tensors.is_adapted(site, ("offset",), targets):
            size = 1, shape.width(site.module)
            vector = tensors.read(tensors.at(site).keys["offset"], size)
            components.append(Offset(site, vector.float().flatten()))
    return tensors.program("beft", components, targets=targets)


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    return 0, (shapes.get("offset") or (0,))[-1]


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "BEFT")


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _ROLE, _sizes)


KIND = Kind("beft", _detect, _compile, _guess_shape)
