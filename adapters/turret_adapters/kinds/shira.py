"""SHiRA as PEFT saves it: `W' = W + S`, S sparse (Bhardwaj et al., 2024, arXiv:2406.13175).

The positions are stored, so the mask and the seed that chose them do not matter. PEFT's scaling is
1 whenever an adapter is loaded.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from turret_adapters.components import Component, SparseDelta
from turret_adapters.errors import quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import WEIGHTS_NAME, PeftConfig
from turret_adapters.peft.roles import collect, guess_sizes, simple_role
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

_KNOWN = frozenset({"fan_in_fan_out", "init_weights", "mask_type", "r", "random_seed"})
_TARGETS = frozenset({"target_modules", "exclude_modules"})
_REFUSED = {"modules_to_save": "it stores full weights of modules beside the sparse changes"}
_ROLE = simple_role({"shira_weight": "values", "shira_indices": "indices"})


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = PeftConfig(files)
        config.check_fields(_KNOWN | _TARGETS, _REFUSED)
        self._rank = config.integer("r", 32, 1)
        self._targets = Targets(config)
        self._tensors, self._shape = PeftTensors(files, shape, config, _ROLE), shape

    def program(self) -> Program:
        components: list[Component] = []
        for site in self._shape.sites():
            # PEFT adapts linears alone, whatever the config names.
            matched = False if site.module is Module.EMBED else None
            if self._tensors.is_adapted(site, ("values", "indices"), self._targets, matched):
                components.append(self._delta(site))
            self._tensors.ignore_base_copy(site)
        return self._tensors.program("shira", components, targets=self._targets)

    def _delta(self, site: Site) -> SparseDelta:
        tensors, keys = self._tensors, self._tensors.at(site).keys
        fan_in, fan_out = self._shape.dims[site.module]
        count = self._rank * (fan_in + fan_out)
        values = tensors.read(keys["values"], (count,), rank_dim=0)
        outputs, inputs = self._indices(keys["indices"], count)
        for found, size in ((outputs, fan_out), (inputs, fan_in)):
            low, high = torch.aminmax(found)
            if low < 0 or high >= size:
                raise tensors.malformed(
                    f"{quote(keys['indices'])} holds {int(low)} to {int(high)}, and the weight "
                    f"there is {fan_out} x {fan_in}"
                )
        return SparseDelta.from_entries(site, outputs, inputs, values, fan_out)

    def _indices(self, key: str, count: int) -> Tensor:
        """Integers, [2, count]; from Windows they come as float32."""
        if not self._tensors.dtype(key).is_floating_point:
            return self._tensors.read(key, (2, count), rank_dim=1, integers=True)
        stored = self._tensors.read(key, (2, count), rank_dim=1)
        if (stored != stored.round()).any() or stored.abs().max() >= 2**24:
            raise self._tensors.malformed(f"{quote(key)} holds numbers that are no exact integers")
        return stored.long()


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "SHIRA")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    """The positions tell the outputs, and the number of values the inputs."""
    tensors, rank = files.tensors(WEIGHTS_NAME), PeftConfig(files).integer("r", 32, 1)
    shape = guess_sizes(files, _ROLE, lambda shapes: (0, 0))
    dims = dict(shape.dims)
    for site, found in collect(tensors, _ROLE)[0].items():
        if (key := found.keys.get("indices")) is not None:
            indices = tensors.read(key)
            if indices.numel() and indices.dim() == 2 and not indices.is_floating_point():
                fan_out = max(dims[site.module][1], int(indices[0].max()) + 1)
                dims[site.module] = indices.shape[-1] // rank - fan_out, fan_out
    return replace(shape, dims=dims)


KIND = Kind("shira", _detect, _compile, _guess_shape)
