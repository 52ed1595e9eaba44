"""Inference-time intervention (Li et al., 2023, arXiv 2306.03341): attention heads are shifted.

`z_h <- z_h + alpha * sigma_h * theta_h` for the output `z_h` of a few heads, before o_proj. ITI has
no format of its own. Here turret_adapter.json is {"kind": "iti", "version": 1, "space": …,
"positions": …}, and adapter.safetensors holds one of two forms:

- directions: `layers` and `heads`, integers [K], `directions` (theta) [K, head_dim], `deviations`
  (sigma) [K]; the config has `alpha`, too, and `space` is "pre_o".
- baked, as the authors publish models: `model.layers.{l}.self_attn.o_proj.bias`. With the space
  "post_o" it is o_proj's bias [hidden], as those models compute it; with "pre_o" it is the shift of
  all heads [heads * head_dim], which o_proj has yet to multiply. The authors' script
  validation/edit_weight.py stores the latter under this name, so only its user can know.

`positions` is "all", as a baked model acts, or "generating": the last position of the prompt and
all that follow, as the authors' interventions act while they generate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turret_adapters.components import Component, Offset
from turret_adapters.errors import listing
from turret_adapters.files import AdapterFiles
from turret_adapters.own_format import CONFIG_NAME as OWN_CONFIG_NAME
from turret_adapters.own_format import WEIGHTS_NAME, OwnConfig, is_own
from turret_adapters.peft.names import TensorName
from turret_adapters.peft.roles import collect
from turret_adapters.peft.tensors import PeftTensors
from turret_adapters.spec import Kind, ModelShape, Module, Positions, Program, Site
from turret_adapters.tensor_file import is_finite

_DIRECTIONS = ("layers", "heads", "directions", "deviations")
_KNOWN = frozenset({"space", "positions"})
_MOST_LAYERS, _MOST_HEADS = 4096, 512  # of a base that is guessed


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = self._config = OwnConfig(files)
        self._tensors = PeftTensors(files, shape, config, _role, WEIGHTS_NAME)
        self._shape = shape
        self._is_before_o = config.choice("space", ("pre_o", "post_o")) == "pre_o"
        generating = config.choice("positions", ("all", "generating")) == "generating"
        self._positions = Positions(generating=True) if generating else None

    def program(self) -> Program:
        has_directions = any(self._tensors.has(key) for key in _DIRECTIONS)
        components = self._directions() if has_directions else self._baked()
        return self._tensors.program("iti", components, positions=self._positions)

    def _directions(self) -> list[Component]:
        config, tensors, shape = self._config, self._tensors, self._shape
        config.check_fields(_KNOWN | {"alpha"})
        if not self._is_before_o:
            raise config.malformed('space is "post_o", but directions of heads lie before o_proj')
        if missing := [key for key in _DIRECTIONS if not tensors.has(key)]:
            raise tensors.malformed(f"{WEIGHTS_NAME} has no {listing(missing)}")
        alpha = config.number("alpha")
        num_heads = shape.width(Module.HEADS) // max(shape.head_dim, 1)
        limits = {"layers": shape.num_layers, "heads": num_heads}
        size = tensors.size("layers")
        if len(size) != 1 or not 0 < size[0] <= shape.num_layers * num_heads:
            raise tensors.wrong_base(f"layers has shape {list(size)}, not one entry per head")
        count = size[0]
        layers, heads = (self._numbers(key, count, limit) for key, limit in limits.items())
        if len(torch.unique(layers * num_heads + heads)) < count:
            raise tensors.malformed("layers and heads name a head twice")
        directions = tensors.read("directions", (count, shape.head_dim)).float()
        deviations = tensors.read("deviations", (count,)).float()
        shifts = alpha * deviations[:, None] * directions
        if not is_finite(shifts):
            raise tensors.malformed(f"its shifts times alpha {alpha:g} overflow float32")
        components: list[Component] = []
        for layer in torch.unique(layers).tolist():
            vector = torch.zeros(num_heads, shape.head_dim)
            vector[heads[layers == layer]] = shifts[layers == layer]
            components.append(Offset(Site(layer, Module.HEADS), vector.flatten()))
        return components

    def _numbers(self, key: str, count: int, limit: int) -> Tensor:
        numbers = self._tensors.read(key, (count,), integers=True).long()
        outside = numbers[(numbers < 0) | (numbers >= limit)]
        if len(outside):
            raise self._tensors.wrong_base(f"{key} holds {outside[0]}, and this base has {limit}")
        return numbers

    def _baked(self) -> list[Component]:
        self._config.check_fields(_KNOWN)
        components: list[Component] = []
        for site, found in sorted(self._tensors.sites.items()):
            where = Site(site.layer, Module.HEADS) if self._is_before_o else site
            vector = self._tensors.read(found.keys["bias"], (self._shape.width(where.module),))
            # The published models replace the bias of o_proj, where there is one.
            components.append(Offset(where, vector.float(), absolute=not self._is_before_o))
        return components


def _role(name: TensorName) -> str | None:
    return "bias" if name.site.module is Module.O and name.role == ("bias",) else None


def _detect(files: AdapterFiles) -> bool:
    return is_own(files, "iti")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    tensors = files.tensors(WEIGHTS_NAME)
    infos = tensors.infos
    if infos.keys() >= set(_DIRECTIONS) and len(infos["directions"].shape) == 2:
        head_dim = infos["directions"].shape[1]
        layers, heads = (tensors.read(key).flatten().tolist() for key in ("layers", "heads"))
        # Bounded: a small file may name a huge head.
        num_layers = min(int(max(layers, default=0)), _MOST_LAYERS - 1) + 1
        num_heads = min(int(max(heads, default=0)), _MOST_HEADS - 1) + 1
        return ModelShape(num_layers, {Module.O: (num_heads * head_dim, 0)}, head_dim=head_dim)
    sites = collect(tensors, _role)[0]
    widths = [sum(infos[x.keys["bias"]].shape) for x in sites.values()]
    width = max(widths, default=0)
    return ModelShape(max((s.layer + 1 for s in sites), default=0), {Module.O: (width, width)})


KIND = Kind("iti", _detect, _compile, _guess_shape, files=(OWN_CONFIG_NAME, WEIGHTS_NAME))
