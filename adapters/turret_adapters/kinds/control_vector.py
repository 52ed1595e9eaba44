"""Control vectors as repeng and llama.cpp exchange them: directions added to the residual stream.

A GGUF file of the architecture `controlvector` with tensors `direction.{l}` [hidden]. Both programs
add direction l to what block l (counted from 0) puts out, at every position; an offset of that
block's down_proj, or of the norm behind it, is the same: the residual addition follows.
"""

from __future__ import annotations

import re

from turret_adapters.components import Component, Offset
from turret_adapters.errors import AdapterUnsupported, listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.gguf_file import GgufFile
from turret_adapters.own_format import CONFIG_NAME as OWN_CONFIG_NAME
from turret_adapters.peft.config import CONFIG_NAME
from turret_adapters.peft.tensors import PeftTensors
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

_FILE = "*.gguf"
_DIRECTION = re.compile(r"direction\.(0|[1-9]\d{0,4})", re.ASCII)
# What is written about a vector and does not change it; llama.cpp reads none of it.
_KNOWN = ("model_hint", "layer_count", "method")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    fields = _fields(files)
    tensors = PeftTensors(files, shape, None, lambda name: None, _FILE)
    unknown = [
        key
        for key, value in fields.items()
        if key.startswith("controlvector.") and key.split(".", 1)[1] not in _KNOWN and value
    ]
    if unknown:
        raise tensors.unsupported(
            f"it sets {listing(unknown)}, which may change what it does", "Export it without them."
        )
    components: list[Component] = []
    last = Module.MLP_OUT if shape.has_post_norms else Module.DOWN
    for layer, key in _directions(files).items():
        site = Site(layer, last)
        if layer == 0:
            raise tensors.unsupported(
                f"it holds {quote(key)}, which llama.cpp refuses: nothing steers the output of "
                "the first block, and the file may count its layers from another number",
                "Export it with the layers numbered as repeng does.",
            )
        if not shape.has(site):
            raise tensors.wrong_base(
                f"it holds {quote(key)}, and this base's last block is {shape.num_layers - 1}"
            )
        vector = tensors.read(key, (shape.width(last),))
        components.append(Offset(site, vector.float()))
    if hint := fields.get("controlvector.model_hint"):
        tensors.notes.append(f"made for models of the type {quote(hint)}")
    return tensors.program("control_vector", components)


def _fields(files: AdapterFiles) -> dict[str, object]:
    file = files.tensors(_FILE)
    assert isinstance(file, GgufFile), "its name says so"
    architecture = file.fields.get("general.architecture")
    if architecture != "controlvector":
        raise AdapterUnsupported(
            f"adapter {quote(str(files.path))} was not loaded",
            f"the general.architecture of {quote(file.name)} is {quote(architecture)}; of GGUF "
            "files, those of the architecture 'controlvector' are read",
            "Convert LoRA to PEFT's format; serve a whole model as MODEL.",
        )
    return file.fields


def _directions(files: AdapterFiles) -> dict[int, str]:
    """Names of the directions by block."""
    names = map(_DIRECTION.fullmatch, files.tensors(_FILE).infos)
    return {int(name[1]): name[0] for name in names if name}


def _detect(files: AdapterFiles) -> bool:
    return files.has(_FILE) and not files.has(CONFIG_NAME) and not files.has(OWN_CONFIG_NAME)


def _guess_shape(files: AdapterFiles) -> ModelShape:
    infos, directions = files.tensors(_FILE).infos, _directions(files)
    widths = [infos[key].shape[-1] for key in directions.values() if infos[key].shape]
    return ModelShape(max(directions, default=-1) + 1, {Module.DOWN: (0, max(widths, default=0))})


KIND = Kind("control_vector", _detect, _compile, _guess_shape, files=(_FILE,))
