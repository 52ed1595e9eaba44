"""LoFiT: a few attention heads, scaled and shifted (Yin, Ye and Durrett, 2024, arXiv 2406.01563).

`z_h <- (1 + A_h) * z_h + v_h` for the output `z_h` of head h, before o_proj, at every position.

Two formats are read. LoFiT's own code saves the whole model with `self_attn.attn_A.{h}` and
`attn_v.{h}` [head_dim] for every head; all else in it must be the served base. The compact one
(`turret fit lofit`) is turret_adapter.json {"kind": "lofit", "version": 1} and adapter.safetensors
with `layers` and `heads`, integers [K], `v` [K, head_dim], and optionally `A` [K, head_dim].
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from turret_adapters import model_folder, own_format
from turret_adapters.components import Component, Offset, Scale
from turret_adapters.errors import AdapterError, AdapterUnsupported, listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.model_folder import ModelFolder, is_model_folder, model_files, tensor_names
from turret_adapters.own_format import OwnConfig, is_own
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site
from turret_adapters.tensor_file import is_finite

_NAME = "lofit"
_HEAD_TENSOR = re.compile(
    r"model\.layers\.(0|[1-9]\d{0,4})\.self_attn\.attn_([Av])\.(0|[1-9]\d{0,4})", re.ASCII
)
# More than any model has, in all and of one sort.
_MAX_HEADS, _MAX_NUMBER = 1 << 16, 1 << 10


@dataclass(frozen=True, slots=True)
class _Heads:
    """What happens to every head of the base: float32 [layers, heads, head_dim]."""

    v: Tensor
    a: Tensor | None

    def components(self) -> list[Component]:
        """One offset, and one scale, for each layer in which they do anything."""
        found: list[Component] = []
        for layer, v in enumerate(self.v):
            site = Site(layer, Module.HEADS)
            if self.a is not None and self.a[layer].any():
                found.append(Scale(site, 1 + self.a[layer].flatten()))
            if v.any():
                found.append(Offset(site, v.flatten()))
        return found


class _Compact:
    """turret_adapter.json and adapter.safetensors."""

    def __init__(self, files: AdapterFiles):
        self.config = OwnConfig(files)
        self.config.check_fields()
        self.base_model = self.config.base_model
        self._file = files.tensors(own_format.WEIGHTS_NAME)
        infos = self._file.infos
        missing = {"layers", "heads", "v"} - infos.keys()
        if missing:
            raise self.malformed(f"{own_format.WEIGHTS_NAME} has no {listing(sorted(missing))}")
        strangers = [name for name in infos if name not in ("layers", "heads", "v", "A")]
        if strangers:
            raise self.config.unsupported(
                f"{own_format.WEIGHTS_NAME} holds {listing(strangers)}, which LoFiT does not have"
            )

    def notes(self, shape: ModelShape) -> list[str]:
        return self.config.base_notes(shape.name)

    def read(self, shape: ModelShape) -> _Heads:
        size = _sizes(shape)
        layers = self._numbers("layers", size[0])
        heads = self._numbers("heads", size[1])
        if layers.shape != heads.shape or len(torch.unique(layers * size[1] + heads)) < len(heads):
            raise self.malformed("layers and heads are no list of different heads")

        def scattered(key: str) -> Tensor:
            full = torch.zeros(size)
            full[layers, heads] = self._vectors(key, (len(heads), size[2]))
            return full

        return _Heads(scattered("v"), scattered("A") if "A" in self._file.infos else None)

    def guess(self) -> tuple[int, int, int]:
        """Layers, heads and head_dim of the smallest base that it fits."""
        v = self._file.infos["v"].shape
        if len(v) != 2:
            raise self.malformed(f"v has shape {list(v)}, not [heads, head_dim]")
        layers, heads = (self._numbers(key, _MAX_NUMBER) for key in ("layers", "heads"))
        return int(layers.max()) + 1, int(heads.max()) + 1, v[1]

    def malformed(self, why: str) -> AdapterError:
        return self.config.malformed(why, "Write the adapter again.")

    def _numbers(self, key: str, limit: int) -> Tensor:
        info = self._file.infos[key]
        if info.dtype not in (torch.int32, torch.int64) or len(info.shape) != 1:
            raise self.malformed(f"{key} is no list of integers")
        if not 0 < info.shape[0] <= _MAX_HEADS:
            raise self.malformed(f"{key} has {info.shape[0]} entries")
        numbers = self._file.read(key).long()
        low, high = (int(x) for x in torch.aminmax(numbers))
        if low < 0 or high >= limit:
            raise self.config.unsupported(
                f"{key} holds {high if high >= limit else low}, and this base has {limit}",
                "Load it on the base that it was fitted on"
                + (f" ({quote(self.base_model)})." if self.base_model else "."),
            )
        return numbers

    def _vectors(self, key: str, size: tuple[int, int]) -> Tensor:
        info = self._file.infos[key]
        if not info.dtype.is_floating_point:
            raise self.malformed(f"{key} is of {info.dtype}, not floating point")
        if info.shape != size:
            raise self.malformed(f"{key} has shape {list(info.shape)}, expected {list(size)}")
        return _finite(self, key, self._file.read(key).float())


class _WholeModel:
    """A model as LoFiT's own code saves it."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        self._folder = ModelFolder(files, shape)
        self.base_model = self._folder.base_model

    def notes(self, shape: ModelShape) -> list[str]:
        return ["its copy of the base's weights was not compared"] if shape.weight is None else []

    def read(self, shape: ModelShape) -> _Heads:
        size = _sizes(shape)
        own = frozenset(filter(_HEAD_TENSOR.fullmatch, self._folder.names))
        v, a = self._vectors("v", size, own), self._vectors("A", size, own)
        if left := sorted(own - set(_keys("v", size)) - set(_keys("A", size))):
            raise self._folder.wrong_base(
                f"it holds {listing(left)}, and this base has {size[0]} layers of {size[1]} heads"
            )
        self._folder.check_base(own)
        return _Heads(v, a)

    def malformed(self, why: str) -> AdapterError:
        return self._folder.malformed(why)

    def _vectors(self, which: str, size: tuple[int, int, int], own: frozenset[str]) -> Tensor:
        keys = _keys(which, size)
        if missing := [key for key in keys if key not in own]:
            raise self._folder.wrong_base(f"it has no {listing(missing)}")
        vectors = torch.stack([self._folder.read(key, size[2:]).float() for key in keys])
        return _finite(self, f"attn_{which}", vectors).view(size)


def _keys(which: str, size: tuple[int, int, int]) -> list[str]:
    return [
        f"model.layers.{layer}.self_attn.attn_{which}.{head}"
        for layer in range(size[0])
        for head in range(size[1])
    ]


def _sizes(shape: ModelShape) -> tuple[int, int, int]:
    """Layers, query heads and head_dim of a base."""
    d = shape.head_dim
    if d == 0:
        raise AdapterUnsupported(
            "the LoFiT adapter was not loaded",
            "the width of the base's heads is not known",
            "Load it into a server of its base.",
        )
    return shape.num_layers, shape.width(Module.HEADS) // d, d


def _finite(source: _Compact | _WholeModel, name: str, tensor: Tensor) -> Tensor:
    if not is_finite(tensor):
        raise source.malformed(f"{name} holds NaN or infinity")
    return tensor


def _detect(files: AdapterFiles) -> bool:
    if is_own(files, _NAME):
        return True
    names = tensor_names(files) if is_model_folder(files) else ()
    return any(map(_HEAD_TENSOR.fullmatch, names))


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    source = _Compact(files) if is_own(files, _NAME) else _WholeModel(files, shape)
    components = source.read(shape).components()
    if not components:
        raise source.malformed("all its vectors are zero: it would do nothing")
    return Program(_NAME, tuple(components), source.base_model, tuple(source.notes(shape)))


def _guess_shape(files: AdapterFiles) -> ModelShape:
    if not is_own(files, _NAME):
        return model_folder.guess_shape(files)
    layers, heads, d = _Compact(files).guess()
    return ModelShape(layers, {Module.O: (heads * d, heads * d)}, head_dim=d)


def _list_files(files: AdapterFiles) -> tuple[str, ...]:
    return _FILES if is_own(files, _NAME) else model_files(files)


_FILES = (own_format.CONFIG_NAME, own_format.WEIGHTS_NAME)
KIND = Kind(
    _NAME,
    _detect,
    _compile,
    _guess_shape,
    _FILES,
    list_files=_list_files,
    # In the compact format there are no copies, and no names like these.
    repeats_base=lambda key: key.startswith(("model.", "lm_head.")) and ".attn_" not in key,
)
