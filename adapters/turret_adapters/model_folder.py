"""A folder that holds a whole model of which an adapter is a part: the rest must be the base.

The weights are compared in samples (`sample_ranges`): a model that was trained further differs in
every tensor, and a sample of 290 tensors is read in a fraction of a second where 13 GB are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from turret_adapters.errors import AdapterMalformed, AdapterUnsupported, listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.names import parse_name
from turret_adapters.sites import NORMED
from turret_adapters.spec import LINEARS, ModelShape, Module, Site
from turret_adapters.tensor_file import TensorFile, sample_ranges

CONFIG_NAME = "config.json"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_GAINS = (*NORMED, Module.HEAD_IN)
_HEAD_NORM = re.compile(
    r"model\.layers\.(0|[1-9]\d{0,4})\.self_attn\.([qk])_norm\.weight", re.ASCII
)
_NORM = "norm.weight"  # of q's or k's heads
# Old Llama checkpoints store the rotary frequencies, which follow from the configuration.
_FREQUENCIES = ".rotary_emb.inv_freq"


def is_model_folder(files: AdapterFiles) -> bool:
    """Does the folder hold a transformers model in safetensors?"""
    return files.has(CONFIG_NAME) and (files.has(_SINGLE) or files.has(_INDEX))


def model_files(files: AdapterFiles) -> tuple[str, ...]:
    """config.json and the files with the weights, shards as their index names them.

    Raises:
        AdapterMalformed: the index makes no sense.
    """
    if files.has(_SINGLE):  # transformers prefers it to an index, too
        return CONFIG_NAME, _SINGLE
    shards = sorted(set(_weight_map(files).values()))
    return CONFIG_NAME, *shards


def tensor_names(files: AdapterFiles) -> Iterable[str]:
    """The names of the weights, from the index where there is one."""
    return files.tensors(_SINGLE).infos if files.has(_SINGLE) else _weight_map(files)


def guess_shape(files: AdapterFiles) -> ModelShape:
    """The model's sizes as config.json gives them, for `inspect`.

    Raises:
        AdapterMalformed: it gives none.
    """
    config = files.json(CONFIG_NAME)

    def count(name: str, default: int | None = None) -> int:
        value = config.get(name)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < 1 << 24:
            raise AdapterMalformed(
                f"{CONFIG_NAME!r} was refused",
                f"{name} is {quote(value)}, not a positive integer",
                "Download it again.",
            )
        return value

    hidden, inner, heads = map(count, ("hidden_size", "intermediate_size", "num_attention_heads"))
    d = count("head_dim", hidden // heads)
    q, kv = heads * d, count("num_key_value_heads", heads) * d
    vocab = count("vocab_size")
    parsed = [name for name in map(parse_name, tensor_names(files)) if name is not None]
    return ModelShape(
        count("num_hidden_layers"),
        {
            Module.Q: (hidden, q),
            Module.K: (hidden, kv),
            Module.V: (hidden, kv),
            Module.O: (q, hidden),
            Module.GATE: (hidden, inner),
            Module.UP: (hidden, inner),
            Module.DOWN: (inner, hidden),
            Module.EMBED: (vocab, hidden),
            Module.HEAD: (hidden, vocab),
        },
        has_bias=frozenset(name.site.module for name in parsed if name.role == ("bias",)),
        tied_head=all(name.site.module is not Module.HEAD for name in parsed),
        head_dim=d,
    )


def _weight_map(files: AdapterFiles) -> dict[str, str]:
    found = files.json(_INDEX).get("weight_map")
    if not isinstance(found, dict) or not found or not all(map(_is_shard, found.values())):
        raise AdapterMalformed(
            f"{_INDEX!r} was refused",
            "its weight_map does not map tensors to safetensors files of the folder",
            "Download the model again, or save it again with save_pretrained.",
        )
    return found


def _place(key: str, shape: ModelShape) -> tuple[Site, str] | None:
    """The site of a weight, bias or head norm, and which of them it is."""
    if match := _HEAD_NORM.fullmatch(key):
        return Site(int(match[1]), Module(f"{match[2]}_proj")), _NORM
    name = parse_name(key, shape.has_post_norms)
    if name is None or name.role not in (("weight",), ("bias",)):
        return None
    return name.site, name.role[0]


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and name == PurePath(name).name and name.endswith(".safetensors")


class ModelFolder:
    """The weights in a model folder, for one base.

    Args:
        files: the folder.
        shape: the base.

    Attributes:
        config: the fields of config.json.
        names: of all tensors.

    Raises:
        AdapterError: a file is missing or damaged, or a tensor lies in two.
    """

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        self._what = f"adapter {quote(str(files.path))} was not loaded"
        self._shape = shape
        self._files: dict[str, TensorFile] = {}
        self.config: dict[str, Any] = files.json(CONFIG_NAME)
        for name in model_files(files)[1:]:
            file = files.tensors(name)
            for key in file.infos:
                if key in self._files:
                    raise self.malformed(f"{quote(key)} lies in two of its files")
                self._files[key] = file
        self.names = list(self._files)

    @property
    def base_model(self) -> str | None:
        """The model that it was trained from, as config.json names it."""
        value = self.config.get("_name_or_path")
        return value[:500] if isinstance(value, str) and value else None

    def read(self, key: str, size: tuple[int, ...]) -> Tensor:
        """A floating-point tensor of this size, in its stored dtype.

        Raises:
            AdapterError: it has another shape or type.
        """
        self._check(key, size)
        return self._files[key].read(key)

    def check_base(self, own: frozenset[str]) -> None:
        """Compare all tensors but `own` with the base, in samples; their shapes, without a base.

        Raises:
            AdapterUnsupported: one differs, or does not exist in the base.
            AdapterMalformed: one is missing.
        """
        found: dict[tuple[Site, str], str] = {}
        strangers: list[str] = []
        for key in self.names:
            if key in own or key.endswith(_FREQUENCIES):
                continue
            place = _place(key, self._shape)
            if place is None:
                strangers.append(key)
            elif place in found:
                raise self.malformed(f"{quote(found[place])} and {quote(key)} are one tensor")
            else:
                found[place] = key
        expected = self._expected()
        strangers += [key for place, key in found.items() if place not in expected]
        if strangers:
            raise self.wrong_base(f"it holds {listing(strangers)}, which this base does not have")
        optional = {(Site(-1, Module.HEAD), "weight")} if self._shape.tied_head else set()
        missing = [
            f"{s}.{role}" for s, role in expected if (s, role) not in found.keys() | optional
        ]
        if missing:
            raise self.malformed(f"it is a whole model without {listing(missing)}")
        for (site, role), key in found.items():
            self._compare(key, site, role, expected[site, role])

    def _expected(self) -> dict[tuple[Site, str], tuple[int, ...]]:
        """The tensors of the base, with their shapes."""
        shape = self._shape
        sizes: dict[tuple[Site, str], tuple[int, ...]] = {}
        for site in shape.sites():
            fan_in, fan_out = shape.dims[site.module]
            is_embedding = site.module is Module.EMBED
            sizes[site, "weight"] = (fan_in, fan_out) if is_embedding else (fan_out, fan_in)
            if site.module in shape.has_bias:
                sizes[site, "bias"] = (fan_out,)
        for module in _GAINS:
            layers = [-1] if module is Module.HEAD_IN else range(shape.num_layers)
            sites = [site for x in layers if shape.has(site := Site(x, module))]
            sizes |= {(site, "weight"): (shape.width(module),) for site in sites}
        if shape.has_qk_norms:
            heads = [Site(x, m) for x in range(shape.num_layers) for m in (Module.Q, Module.K)]
            sizes |= {(site, _NORM): (shape.head_dim,) for site in heads}
        return sizes

    def _compare(self, key: str, site: Site, role: str, size: tuple[int, ...]) -> None:
        self._check(key, size)
        shape = self._shape
        if shape.weight is None or shape.gain is None or shape.bias is None:
            return
        if shape.is_quantized and site.module in LINEARS and role == "weight":
            return  # rounded: no copy equals it
        if role == "bias":
            base = shape.bias(site)
        else:
            is_gain = site.module in _GAINS or role == _NORM
            base = shape.gain(site) if is_gain else shape.weight(site)
        assert base is not None, "the shape says that it is there"
        flat, copy = base.reshape(-1), self._files[key].sample(key)
        base = torch.cat([flat[first:last] for first, last in sample_ranges(len(flat))]).cpu()
        # Either may have been rounded from the other.
        if not (torch.equal(copy.to(base.dtype), base) or torch.equal(base.to(copy.dtype), copy)):
            raise self.wrong_base(f"{quote(key)} differs from the base's {site}.{role}")

    def _check(self, key: str, size: tuple[int, ...]) -> None:
        info = self._files[key].infos[key]
        if not info.dtype.is_floating_point:
            raise self.malformed(f"{quote(key)} is of {info.dtype}, not floating point")
        if info.shape != size:
            raise self.wrong_base(
                f"{quote(key)} has shape {list(info.shape)}, expected {list(size)}"
            )

    def wrong_base(self, why: str) -> AdapterUnsupported:
        """The error for a model that is not the base with an adapter."""
        trained = f" (this one names {quote(self.base_model)})" if self.base_model else ""
        served = quote(self._shape.name) if self._shape.name else "this base"
        return AdapterUnsupported(
            self._what, why, f"Load one that was trained from {served}{trained}."
        )

    def malformed(self, why: str) -> AdapterMalformed:
        """The error for what makes no sense."""
        return AdapterMalformed(self._what, why, "Download it again, or save it again.")
