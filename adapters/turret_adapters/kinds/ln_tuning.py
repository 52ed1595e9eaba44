"""LN tuning as PEFT saves it (Zhao et al., 2023, arXiv 2312.11420): gains of norms of its own.

`x_norm * g` becomes `x_norm * g'`, which is the base's activation times `g' / g`. In Gemma g is one
more than what is stored.
"""

from __future__ import annotations

from torch import Tensor

from turret_adapters.components import Component, Scale
from turret_adapters.errors import listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import WEIGHTS_NAME, PeftConfig
from turret_adapters.peft.roles import collect, simple_role
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.sites import NORMED
from turret_adapters.spec import READERS, Kind, ModelShape, Module, Program, Site
from turret_adapters.tensor_file import is_finite

_REFUSED = {"modules_to_save": "it stores full weights of modules; gains of norms can be served"}
_KNOWN = frozenset({"exclude_modules", "target_modules"})
_ROLE = simple_role({"ln_tuning_layers": "gain"})


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = PeftConfig(files)
        config.check_fields(_KNOWN, _REFUSED)
        self._targets = Targets(config)
        _refuse_head_norms(files, config)
        self._tensors = PeftTensors(files, shape, config, _ROLE)
        self._shape = shape

    def program(self) -> Program:
        shape = self._shape
        sites = [Site(layer, module) for layer in range(shape.num_layers) for module in NORMED]
        components: list[Component] = []
        for site in [*sites, Site(-1, Module.HEAD_IN)]:
            if shape.has(site) and self._tensors.is_adapted(site, ("gain",), self._targets):
                components.append(Scale(site, self._ratio(site)))
        return self._tensors.program("ln_tuning", components, targets=self._targets)

    def _ratio(self, site: Site) -> Tensor:
        """The new gain over the base's, float32."""
        key = self._tensors.at(site).keys["gain"]
        offset = self._shape.gain_offset
        new = self._tensors.read(key, (self._shape.width(site.module),)).float() + offset
        if self._shape.gain is None:
            raise self._tensors.unsupported(
                "it is served as a ratio to the base's gains, and no base is at hand",
                "Load it into a server of its base.",
            )
        old = self._shape.gain(site).float().cpu() + offset
        ratio = new / old
        ratio[new == old] = 1  # 0 / 0 where both are zero
        if not is_finite(ratio):
            where = int((~ratio.isfinite()).nonzero()[0])
            raise self._tensors.unsupported(
                f"{quote(key)} is {float(new[where]):g} at feature {where}, where the base's gain "
                f"is {float(old[where]):g}: no scale of the base's activation gives that",
                "Serve the merged model.",
            )
        return ratio


def _refuse_head_norms(files: AdapterFiles, config: PeftConfig) -> None:
    names = files.tensors(WEIGHTS_NAME).infos
    found = [name for name in names if ".q_norm." in name or ".k_norm." in name]
    if found:
        raise config.unsupported(
            f"it changes the norms inside attention ({listing(found)}); those before attention, "
            "behind attention, MLP and head can be served",
            "Train it without q_norm and k_norm, or serve the merged model.",
        )


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "LN_TUNING")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    tensors = files.tensors(WEIGHTS_NAME)
    found = collect(tensors, _ROLE)[0]
    sizes = [tensors.infos[x.keys["gain"]].shape for x in found.values() if "gain" in x.keys]
    hidden = max((size[0] for size in sizes if size), default=0)
    num_layers = max((site.layer + 1 for site in found), default=0)
    dims = {READERS[module]: (hidden, 0) for module in (*NORMED, Module.HEAD_IN)}
    return ModelShape(num_layers, dims)


KIND = Kind("ln_tuning", _detect, _compile, _guess_shape)
