"""OFT as PEFT saves it: the input of a linear turns in blocks (Qiu et al., 2023; Liu et al., 2024).

`y = W (x R) + b`, R block-diagonal. A skew-symmetric Q is stored for each block, by its upper
triangle; the block is its Cayley transform `(I + Q)^-1 (I - Q)`, or a truncated series, for which
PEFT takes the other sign: `I + 2 Q + 2 Q^2 + … + 2 Q^(k-1) + Q^k`. Served is `x + w x (R - I)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from turret_adapters.components import Component, InputRotation
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.low_rank import COMMON_FIELDS, new_bias
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import LINEARS, Kind, ModelShape, Module, Program, Site
from turret_adapters.tensor_file import is_finite

_KNOWN = COMMON_FIELDS | {
    "block_share",
    "module_dropout",
    "num_cayley_neumann_terms",
    "oft_block_size",
    "use_cayley_neumann",
}
_REFUSED = {
    "modules_to_save": "it stores full weights of modules; rotations can be served",
    "coft": "it projects the rotations while it computes, and how often is not stored",
}
_ROLE = simple_role({"oft_R": "R"})
_MAX_TERMS = 100  # PEFT's default is 5; each is a product of all blocks


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = self._config = PeftConfig(files)
        config.check_fields(_KNOWN | {"eps"}, _REFUSED)
        if config.get("use_cayley_neumann") is None:
            raise config.unsupported(
                "it does not say whether use_cayley_neumann was set, on which its rotations depend",
                "Save it with PEFT 0.17 or later.",
            )
        self._terms = 0
        if config.flag("use_cayley_neumann"):
            self._terms = config.integer("num_cayley_neumann_terms", 5, 1)
            if self._terms > _MAX_TERMS:
                raise config.unsupported(
                    f"num_cayley_neumann_terms is more than {_MAX_TERMS}, the longest series that "
                    "is computed",
                    "Save it with fewer.",
                )
        self._shares = config.flag("block_share")
        self._count = config.integer("r", 0, 0)
        self._size = config.integer("oft_block_size", 32, 0)
        if (self._count == 0) == (self._size == 0):
            raise config.malformed("exactly one of r and oft_block_size must be 0")
        self._bias = config.choice("bias", "none", ("none", "all", "oft_only"))
        self._targets = Targets(config)
        self._tensors = PeftTensors(files, shape, config, _ROLE)

    def program(self) -> Program:
        components: list[Component] = []
        for site in self._tensors.shape.sites():
            is_linear = site.module in LINEARS
            is_adapted = site.module is not Module.EMBED and self._tensors.is_adapted(
                site, ("R",), self._targets
            )
            if is_adapted and not is_linear:
                raise self._tensors.unsupported(
                    "it rotates what the head reads, and the head is computed in one product for "
                    "all requests",
                    "Leave lm_head out of target_modules.",
                )
            if is_adapted:
                components.append(self._rotation(site))
            if self._bias == "all" or (self._bias != "none" and is_adapted):
                components += new_bias(self._tensors, site)
            self._tensors.ignore_base_copy(site)
        return self._tensors.program("oft", components, targets=self._targets)

    def _rotation(self, site: Site) -> InputRotation:
        fan_in = self._tensors.shape.dims[site.module][0]
        if self._size:
            size = _divisor(fan_in, self._size)
        else:
            size = fan_in // _divisor(fan_in, self._count)
        count = 1 if self._shares else fan_in // size
        key = self._tensors.at(site).keys["R"]
        upper = self._tensors.read(key, (count, size * (size - 1) // 2)).float()
        skew = torch.zeros(count, size, size)
        rows, columns = torch.triu_indices(size, size, 1)
        skew[:, rows, columns] = upper
        change = _change(skew - skew.mT, self._terms)
        if not is_finite(change):
            raise self._tensors.malformed(f"the rotation of {site} overflows float32")
        return InputRotation(site, change.contiguous())


def _change(skew: Tensor, terms: int) -> Tensor:
    """`R - I` [n, b, b], from the skew-symmetric Q; `terms` 0 is the Cayley transform itself."""
    if terms == 0:
        identity = torch.eye(skew.shape[1], dtype=torch.float64)
        turned = torch.linalg.solve(identity + skew.double(), identity - skew.double(), left=False)
        return (turned - identity).float()
    if terms <= 2:  # no last term, which counts once
        return (terms - 1) * 2 * skew
    change, power = 2 * skew, skew
    for _ in range(2, max(terms, 4) - 1):  # three terms are as many as four
        power = power @ skew
        change = change + 2 * power
    return change + power @ skew


def _divisor(size: int, wanted: int) -> int:
    """The divisor of `size` nearest to `wanted`, the smaller of two; as PEFT adjusts its config."""
    if wanted >= size:
        return size
    lower = next(n for n in range(wanted, 0, -1) if size % n == 0)
    higher = next(n for n in range(wanted, size + 1) if size % n == 0)
    return lower if wanted - lower <= higher - wanted else higher


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "OFT")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    shares = PeftConfig(files).flag("block_share")

    def sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
        stored = shapes.get("R") or ()
        if len(stored) != 2 or shares:
            return 0, (shapes.get("bias") or (0,))[0]
        block = (1 + math.isqrt(1 + 8 * stored[1])) // 2
        return stored[0] * block, (shapes.get("bias") or (0,))[0]

    return guess_sizes(files, _ROLE, sizes)


KIND = Kind("oft", _detect, _compile, _guess_shape)
