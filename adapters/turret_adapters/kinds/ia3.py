"""(IA)³ as PEFT saves it (Liu et al., 2022, arXiv 2205.05638): learned vectors rescale activations.

`y <- l * (W x + b)` at most modules, `y <- W (l * x) + b` at the config's feedforward_modules. The
decoder computes q, k and v from one input, and gate and up: an input is rescaled for all of a group
or for none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from turret_adapters.components import Component, Scale
from turret_adapters.errors import listing
from turret_adapters.files import AdapterFiles
from turret_adapters.groups import Group
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.targets import Targets, full_matcher
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

_REFUSED = {"modules_to_save": "it stores full weights of modules; scales can be served"}
_KNOWN = frozenset(
    {
        "exclude_modules",
        "fan_in_fan_out",  # PEFT turns it off at a Linear, with a warning
        "feedforward_modules",
        "init_ia3_weights",
        "target_modules",
    }
)
_ROLE = simple_role({"ia3_l": "scale"})
# The activation that the linears of a group read.
_INPUTS = {
    Group.QKV: Module.ATTENTION_IN,
    Group.O: Module.HEADS,
    Group.GATE_UP: Module.MLP_IN,
    Group.DOWN: Module.INNER,
    Group.HEAD: Module.HEAD_IN,
}


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = PeftConfig(files)
        config.check_fields(_KNOWN, _REFUSED)
        self._targets = Targets(config)
        self._scales_input = _feedforward(config)
        self._tensors = PeftTensors(files, shape, config, _ROLE)
        self._shape = shape

    def program(self) -> Program:
        components: list[Component] = []
        inputs: dict[Site, dict[Module, Tensor]] = {}  # by activation: what each reader wants
        for site in self._shape.sites():
            if site.module is Module.EMBED:  # PEFT has no (IA)³ there
                continue
            self._tensors.ignore_base_copy(site)
            if not self._tensors.is_adapted(site, ("scale",), self._targets):
                continue
            found = self._tensors.at(site)
            key, (fan_in, fan_out) = found.keys["scale"], self._shape.dims[site.module]
            if self._scales_input(found.path):
                vector = self._tensors.read(key, (1, fan_in))
                activation = Site(site.layer, _INPUTS[Group.of(site.module)])
                inputs.setdefault(activation, {})[site.module] = vector.float().flatten()
            else:
                vector = self._tensors.read(key, (fan_out, 1))
                components.append(Scale(site, vector.float().flatten()))
        components += [self._shared(activation, wanted) for activation, wanted in inputs.items()]
        return self._tensors.program("ia3", components, targets=self._targets)

    def _shared(self, activation: Site, wanted: dict[Module, Tensor]) -> Scale:
        """One scale for all that read an activation."""
        readers = Group.of(next(iter(wanted))).modules
        first = next(iter(wanted.values()))
        if len(wanted) < len(readers) or not all(torch.equal(first, v) for v in wanted.values()):
            raise self._tensors.unsupported(
                f"feedforward_modules rescales the input of {listing([str(m) for m in wanted])} in "
                f"layer {activation.layer}, but {listing([str(m) for m in readers])} read one input"
                " and would each need the same vector",
                "Rescale their outputs instead, as PEFT's defaults do, or serve the merged model.",
            )
        return Scale(activation, first)


def _feedforward(config: PeftConfig) -> Callable[[str], bool]:
    """Does the module at a path have its input rescaled? PEFT's rule, which needs no dot."""
    names = config.strings("feedforward_modules")
    if names is None:
        raise config.malformed(
            "feedforward_modules is null, and which modules are rescaled at their inputs follows "
            "from it",
            'Name them as PEFT does when it saves; for Llama it is ["down_proj"].',
        )
    if isinstance(names, str):
        return full_matcher(config, "feedforward_modules", names)
    suffixes = tuple(names)
    return lambda path: path.endswith(suffixes)


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    match shapes.get("scale"):
        case (1, fan_in):
            return fan_in, 0
        case (fan_out, 1):
            return 0, fan_out
    return 0, 0


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "IA3")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _ROLE, _sizes)


KIND = Kind("ia3", _detect, _compile, _guess_shape)
