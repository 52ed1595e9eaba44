"""Super-Tuning as PEFT saves it: `W' = W + S + (alpha / r) B A` (arXiv:2607.09287).

S is sparse at the weights of largest magnitude; the low-rank part is there where `r` is set.
"""

from __future__ import annotations

import math

import torch

from turret_adapters.components import Component, LowRank, SparseDelta
from turret_adapters.errors import quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

_KNOWN = frozenset(
    {
        "init_weights",
        "lora_alpha",
        "lora_dropout",
        "r",
        "save_precomputed_indices",
        "select_top",
        "sparsity",
        "target_modules",
    }
)
_REFUSED = {"modules_to_save": "it stores full weights of modules beside the sparse changes"}
_ROLE = simple_role(
    {
        "supertuning_values": "values",
        "supertuning_indices": "indices",
        "supertuning_lora_A": "A",
        "supertuning_lora_B": "B",
    }
)


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = PeftConfig(files)
        config.check_fields(_KNOWN, _REFUSED)
        if config.get("save_precomputed_indices") is False:
            raise config.unsupported(
                "save_precomputed_indices is false: its positions would have to be guessed from "
                "the order of the base's weights, where equal magnitudes are a matter of luck",
                "Save it with save_precomputed_indices=True.",
            )
        self._density = 1 - _sparsity(config)
        self._rank = 0 if config.get("r") is None else config.integer("r", 0, 1)
        alpha = 2 * self._rank if config.get("lora_alpha") is None else config.get("lora_alpha")
        self._scale = config.checked_number("lora_alpha", alpha) / max(self._rank, 1)
        self._targets = Targets(config)
        self._tensors, self._shape = PeftTensors(files, shape, config, _ROLE), shape

    def program(self) -> Program:
        roles = ("values", "indices", "A", "B") if self._rank else ("values", "indices")
        components: list[Component] = []
        for site in self._shape.sites():
            # PEFT adapts linears alone, whatever the config names.
            matched = False if site.module is Module.EMBED else None
            if self._tensors.is_adapted(site, roles, self._targets, matched):
                components.append(self._sparse(site))
                if self._rank:
                    components.append(self._low_rank(site))
            self._tensors.ignore_base_copy(site)
        return self._tensors.program("supertuning", components, targets=self._targets)

    def _sparse(self, site: Site) -> SparseDelta:
        tensors, keys = self._tensors, self._tensors.at(site).keys
        fan_in, fan_out = self._shape.dims[site.module]
        count = int(fan_in * fan_out * self._density)
        if count < 1:
            raise tensors.malformed(f"its sparsity leaves nothing of {site}")
        values = tensors.read(keys["values"], (count,))
        places = tensors.read(keys["indices"], (count,), integers=True).long()
        low, high = torch.aminmax(places)
        if low < 0 or high >= fan_in * fan_out:
            raise tensors.malformed(
                f"{quote(keys['indices'])} holds {int(low)} to {int(high)}, and the weight there "
                f"has {fan_in * fan_out} elements"
            )
        outputs = places.div(fan_in, rounding_mode="floor")
        return SparseDelta.from_entries(site, outputs, places - outputs * fan_in, values, fan_out)

    def _low_rank(self, site: Site) -> LowRank:
        tensors, keys = self._tensors, self._tensors.at(site).keys
        fan_in, fan_out = self._shape.dims[site.module]
        a = tensors.read(keys["A"], (self._rank, fan_in), rank_dim=0)
        b = tensors.read_scaled(keys["B"], (fan_out, self._rank), self._scale, rank_dim=1)
        return LowRank(site, a, b.T.contiguous())


def _sparsity(config: PeftConfig) -> float:
    sparsity = config.number("sparsity", 0.99)
    if not 0 <= sparsity < 1:
        raise config.malformed(f"sparsity is {sparsity}, not in [0, 1)")
    return sparsity


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "SUPERTUNING")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    density = 1 - _sparsity(PeftConfig(files))

    def sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
        if "A" in shapes and "B" in shapes:
            return shapes["A"][-1], shapes["B"][0]
        # Sparse changes alone tell the number of elements at most, not how they lie.
        count = (shapes.get("values") or (0,))[0]
        most = math.ceil((count + 1) / density)
        while int(most * density) > count:
            most -= 1
        return 1, most

    return guess_sizes(files, _ROLE, sizes)


KIND = Kind("supertuning", _detect, _compile, _guess_shape)
