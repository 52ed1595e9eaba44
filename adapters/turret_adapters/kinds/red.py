"""RED, representation editing (Wu et al., 2024, arXiv 2402.15179): `h <- s * h + b`.

RED's code stores `….mlp.down_proj.delta_vector.activation_scaling` and `….activation_bias` [1, out]
in a pickle, delta_vector.pth. What is read is the same in safetensors: delta_vector.safetensors.
"""

from __future__ import annotations

from turret_adapters.components import Component, Offset, Scale
from turret_adapters.errors import listing
from turret_adapters.files import AdapterFiles
from turret_adapters.own_format import CONFIG_NAME as OWN_CONFIG_NAME
from turret_adapters.peft.config import CONFIG_NAME
from turret_adapters.peft.names import TensorName
from turret_adapters.peft.roles import collect
from turret_adapters.peft.tensors import PeftTensors
from turret_adapters.spec import LINEARS, Kind, ModelShape, Module, Program

_FILE, _PICKLE = "delta_vector.safetensors", "delta_vector.pth"
_ROLES = {"activation_scaling": "scaling", "activation_bias": "bias"}


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    tensors = PeftTensors(files, shape, None, _role, _FILE)
    norms = [key for key in files.tensors(_FILE).infos if ".activation_ln." in key]
    if norms:
        raise tensors.unsupported(
            f"it normalises activations ({listing(norms)}); scales and offsets can be served",
            "Train RED with the layer type 'all', 'scaling' or 'bias'.",
        )
    # RED's layer type decides for the whole model: both, or one of them everywhere.
    roles = {role for found in tensors.sites.values() for role in found.keys}
    components: list[Component] = []
    for site, found in sorted(tensors.sites.items()):
        size = 1, shape.width(site.module)
        for role in sorted(roles - found.keys.keys()):
            raise tensors.malformed(f"{found.path} has no {role}, though other modules have")
        if "scaling" in roles:
            vector = tensors.read(found.keys["scaling"], size)
            components.append(Scale(site, vector.float().flatten()))
        if "bias" in roles:
            vector = tensors.read(found.keys["bias"], size)
            components.append(Offset(site, vector.float().flatten()))
    return tensors.program("red", components)


def _role(name: TensorName) -> str | None:
    if name.site.module in LINEARS and name.role[0] == "delta_vector" and len(name.role) == 2:
        return _ROLES.get(name.role[1])
    return None


def _detect(files: AdapterFiles) -> bool:
    if files.has(CONFIG_NAME) or files.has(OWN_CONFIG_NAME):
        return False
    return files.has(_FILE) or files.has(_PICKLE)  # a pickle is refused with the way to convert it


def _guess_shape(files: AdapterFiles) -> ModelShape:
    tensors = files.tensors(_FILE)
    dims: dict[Module, tuple[int, int]] = {}
    num_layers = 0
    for site, found in collect(tensors, _role)[0].items():
        num_layers = max(num_layers, site.layer + 1)
        for key in found.keys.values():
            dims[site.module] = 0, (tensors.infos[key].shape or (0,))[-1]
    return ModelShape(num_layers, dims)


KIND = Kind("red", _detect, _compile, _guess_shape, files=(_FILE,))
