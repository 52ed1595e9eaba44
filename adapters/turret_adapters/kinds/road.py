"""RoAd as PEFT saves it (Liao and Monz, 2024, arXiv 2409.00119, equation 4): outputs turn in pairs.

In every group of `group_size` outputs, feature i of the first half pairs with feature i of the
second. With the columns `a = alpha_1 cos(theta_1)` and `b = alpha_2 sin(theta_2)`, for every
feature: `y_first <- a y_first - b y_second` and `y_second <- a y_second + b y_first`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turret_adapters.components import Component, Scale
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

_REFUSED = {"modules_to_save": "it stores full weights of modules; rotations can be served"}
_KNOWN = frozenset({"group_size", "init_weights", "target_modules", "variant"})
_ROLE = simple_role({"road_theta": "theta", "road_alpha": "alpha"})
# Angles (and scales) per two outputs.
_VARIANTS = {"road_1": 1, "road_2": 2, "road_4": 4}


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = self._config = PeftConfig(files)
        config.check_fields(_KNOWN, _REFUSED)
        self._targets = Targets(config)
        self._variant = config.choice("variant", "road_1", tuple(_VARIANTS))
        self._group = config.integer("group_size", 64, 2)
        if self._group % 2:
            raise config.malformed(f"group_size is {self._group}: no pairs fill an odd group")
        self._tensors = PeftTensors(files, shape, config, _ROLE)
        self._shape = shape

    def program(self) -> Program:
        components: list[Component] = []
        for site in self._shape.sites():
            if site.module is Module.EMBED:  # PEFT has no RoAd there
                continue
            self._tensors.ignore_base_copy(site)
            if self._tensors.is_adapted(site, ("theta", "alpha"), self._targets):
                components.append(self._rotation(site))
        return self._tensors.program("road", components, targets=self._targets)

    def _rotation(self, site: Site) -> Scale:
        width, half = self._shape.width(site.module), self._group // 2
        if width % self._group:
            raise self._tensors.wrong_base(
                f"group_size {self._group} does not divide the {width} outputs of {site}"
            )
        keys = self._tensors.at(site).keys
        size = (width // 2 * _VARIANTS[self._variant],)
        theta, alpha = (self._tensors.read(keys[x], size).float() for x in ("theta", "alpha"))
        a, b = _columns(alpha * theta.cos(), alpha * theta.sin(), self._variant, self._group)
        turn = b.view(-1, 2, half)
        turn = torch.stack((-turn[:, 0], turn[:, 1]), dim=1).flatten()
        return Scale(site, a, turn, half)


def _columns(cos: Tensor, sin: Tensor, variant: str, group: int) -> tuple[Tensor, Tensor]:
    """The factors of a feature itself and of its partner, [outputs] each."""
    if variant == "road_2":
        return cos, sin
    if variant == "road_4":  # in every group first the angles of one column, then of the other
        return cos.view(-1, 2, group)[:, 0].flatten(), sin.view(-1, 2, group)[:, 1].flatten()
    pairs = (x.view(-1, 1, group // 2).expand(-1, 2, -1).flatten() for x in (cos, sin))
    return next(pairs), next(pairs)


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "ROAD")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    config = PeftConfig(files)
    per_two = _VARIANTS[config.choice("variant", "road_1", tuple(_VARIANTS))]

    def sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
        return 0, 2 * (shapes.get("theta") or (0,))[0] // per_two

    return guess_sizes(files, _ROLE, sizes)


KIND = Kind("road", _detect, _compile, _guess_shape)
