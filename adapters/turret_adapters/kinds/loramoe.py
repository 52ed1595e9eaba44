"""LoRAMoE (Dou et al., 2023, arXiv:2312.09979): several low-rank experts, weighed by every token.

`y = W x + s sum_i g_i B_i A_i x` with g = softmax(R x) in float32 and s = alpha / r, at every
adapted linear. The files are those of an early PEFT: `lora_A{i}`, `lora_B{i}` and `lora_route`.
"""

from __future__ import annotations

import re

import torch

from turret_adapters.components import Component, LowRank
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import CONFIG_NAME, PeftConfig
from turret_adapters.peft.names import TensorName
from turret_adapters.peft.roles import guess_sizes
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

# The weights of the balance loss and merging concern training alone.
_KNOWN = frozenset(
    {
        "blc_alpha",
        "blc_weight",
        "lora_alpha",
        "lora_dropout",
        "lora_nums",
        "merge_weights",
        "r",
        "target_modules",
    }
)
_REFUSED = {
    "enable_lora": "merged projections are not read",
    "fan_in_fan_out": "its factors lie the other way round",
    "modules_to_save": "it stores full weights of modules beside the experts",
}
_ROLE = re.compile(r"lora_([AB])(0|[1-9]\d{0,3})", re.ASCII)
_MAX_EXPERTS = 1024


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = PeftConfig(files)
        config.check_fields(_KNOWN | {"bias"}, _REFUSED)
        bias = config.choice("bias", "none", ("none", "all", "lora_only"))
        if bias != "none":
            raise config.unsupported(
                f"bias is {bias!r}: trained biases beside experts are not read"
            )
        self._rank = config.integer("r", 8, 1)
        self._num_experts = config.integer("lora_nums", 2, 1)
        if self._num_experts > _MAX_EXPERTS:
            raise config.malformed(f"lora_nums is {self._num_experts}, more than {_MAX_EXPERTS}")
        self._scale = config.number("lora_alpha", 1) / self._rank
        self._targets = Targets(config)
        self._tensors, self._shape = PeftTensors(files, shape, config, _role), shape

    def program(self) -> Program:
        experts = range(self._num_experts)
        roles = (*(f"{ab}{i}" for ab in "AB" for i in experts), "route")
        components: list[Component] = []
        for site in self._shape.sites():
            # The embedding is no linear, whatever the config names.
            matched = False if site.module is Module.EMBED else None
            if self._tensors.is_adapted(site, roles, self._targets, matched):
                components.append(self._mixture(site))
            self._tensors.ignore_base_copy(site)
        return self._tensors.program("loramoe", components, targets=self._targets)

    def _mixture(self, site: Site) -> LowRank:
        read, read_scaled = self._tensors.read, self._tensors.read_scaled
        keys, rank, count = self._tensors.at(site).keys, self._rank, self._num_experts
        fan_in, fan_out = self._shape.dims[site.module]
        a = [read(keys[f"A{i}"], (rank, fan_in), rank_dim=0).float() for i in range(count)]
        b = [
            read_scaled(keys[f"B{i}"], (fan_out, rank), self._scale, rank_dim=1).T
            for i in range(count)
        ]
        route = read(keys["route"], (count, fan_in)).float()
        gate = torch.zeros(count, fan_out)
        return LowRank(site, torch.cat([*a, route]), torch.cat([*b, gate]), num_experts=count)


def _role(name: TensorName) -> str | None:
    first, *rest = name.role
    if first in ("weight", "bias") and not rest:
        return first
    if rest != ["weight"]:
        return None
    match = _ROLE.fullmatch(first)
    if match is not None:
        return match[1] + match[2]
    return "route" if first == "lora_route" else None


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    return (shapes.get("A0") or (0,))[-1], (shapes.get("B0") or (0,))[0]


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "LORA") and bool(files.json(CONFIG_NAME).get("lora_nums"))


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _role, _sizes)


KIND = Kind("loramoe", _detect, _compile, _guess_shape)
