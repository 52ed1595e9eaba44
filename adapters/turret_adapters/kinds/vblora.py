"""VB-LoRA as PEFT saves it: `W' = W + B A`, made of vectors from one shared bank (Li et al., 2024).

Every piece of A's rows and B's columns is a weighted sum of topk vectors of the bank. Stored are
the logits of all vectors (softmax over the topk largest), or topk indices and their weights but the
last, which makes the sum one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turret_adapters.components import LowRank
from turret_adapters.errors import quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.low_rank import FULL_WEIGHTS, compile_branches
from turret_adapters.peft.roles import SiteTensors, guess_sizes, simple_role
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Program, Site

_PREFIX = "vblora_logits_"
_LOGITS = ("A", "B")
_TOPK = ("A_topk_indices", "A_topk_weights", "B_topk_indices", "B_topk_weights")
_ROLE_OF = simple_role({f"{_PREFIX}{role}": role for role in _LOGITS + _TOPK})
_BANK = "base_model.vblora_vector_bank"
# Weights are softmax outputs: this far from a sum of one they are something else.
_ROUNDING = 1e-2
# Read below, or without effect on what the loaded adapter computes.
_KNOWN = frozenset(
    {
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "init_logits_std",
        "init_vector_bank_bound",
        "layers_pattern",
        "layers_to_transform",
        "num_vectors",
        "r",
        "save_only_topk_weights",
        "target_modules",
        "topk",
        "vblora_dropout",
        "vector_length",
    }
)


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = PeftConfig(files)
        config.check_fields(_KNOWN, {"modules_to_save": FULL_WEIGHTS})
        self._rank = config.integer("r", 4, 1)
        self._num_vectors = config.integer("num_vectors", 256, 1)
        self._length = config.integer("vector_length", 256, 1)
        self._topk = config.integer("topk", 2, 1)
        if self._topk > self._num_vectors:
            raise config.malformed(f"topk is {self._topk}, num_vectors {self._num_vectors}")
        self._is_topk_only = config.flag("save_only_topk_weights")
        self._bias = config.choice("bias", "none", ("none", "all", "vblora_only"))
        self._targets = Targets(config)
        self._tensors = PeftTensors(files, shape, config, _ROLE_OF)
        self._shape = shape
        if not self._tensors.has(_BANK):
            raise self._tensors.malformed(f"{_BANK} is missing")
        self._bank = self._tensors.read(_BANK, (self._num_vectors, self._length)).float()

    def program(self) -> Program:
        roles = _TOPK if self._is_topk_only else _LOGITS
        return compile_branches(
            "vblora",
            self._tensors,
            self._targets,
            lambda *_: roles,
            self._branch,
            bias=self._bias,
        )

    def _branch(self, site: Site, found: SiteTensors) -> LowRank:
        fan_in, fan_out = self._shape.dims[site.module]
        if fan_in % self._length or fan_out % self._length:
            raise self._tensors.wrong_base(
                f"vector_length {self._length} divides not both sizes of {site}, "
                f"{fan_in} and {fan_out}"
            )
        self._tensors.check_rank(site, self._rank)
        a = self._pieces(found, "A", (self._rank, fan_in // self._length))
        b = self._pieces(found, "B", (fan_out // self._length, self._rank))
        return LowRank(
            site, a.reshape(self._rank, fan_in), b.transpose(0, 1).reshape(self._rank, fan_out)
        )

    def _pieces(self, found: SiteTensors, side: str, size: tuple[int, int]) -> Tensor:
        """The weighted sums of bank vectors, [*size, vector_length]."""
        if self._is_topk_only:
            indices = self._indices(found.keys[f"{side}_topk_indices"], size)
            weights = self._weights(found.keys[f"{side}_topk_weights"], size)
        else:
            key = found.keys[side]
            logits = self._tensors.read(key, (*size, self._num_vectors)).float()
            top, indices = logits.topk(self._topk, dim=-1)
            weights = top.softmax(-1)
        sums = F.embedding_bag(
            indices.view(-1, self._topk),
            self._bank,
            per_sample_weights=weights.view(-1, self._topk),
            mode="sum",
        )
        return sums.view(*size, self._length)

    def _indices(self, key: str, size: tuple[int, int]) -> Tensor:
        dtype = _index_dtype(self._num_vectors)
        indices = self._tensors.read(key, (*size, self._topk), integers=dtype).long()
        ordered = indices.sort(-1).values
        if ordered[..., 0].min() < 0 or ordered[..., -1].max() >= self._num_vectors:
            raise self._tensors.malformed(f"{quote(key)} points outside the vector bank")
        if (ordered.diff(dim=-1) == 0).any():
            raise self._tensors.malformed(f"{quote(key)} names a vector twice")
        return indices

    def _weights(self, key: str, size: tuple[int, int]) -> Tensor:
        stored = self._tensors.read(key, (*size, self._topk - 1)).float()
        weights = torch.cat([stored, 1 - stored.sum(-1, keepdim=True)], dim=-1)
        if weights.min() < -_ROUNDING:
            raise self._tensors.malformed(f"{quote(key)} holds no weights: they are 0 to 1")
        return weights


def _index_dtype(num_vectors: int) -> torch.dtype:
    """The type of the stored indices: PEFT takes the smallest."""
    if num_vectors < 1 << 8:
        return torch.uint8
    if num_vectors < 1 << 15:
        return torch.int16
    return torch.int32 if num_vectors < 1 << 31 else torch.int64


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "VBLORA")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    length = PeftConfig(files).integer("vector_length", 256, 1)

    def sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
        a = shapes.get("A") or shapes.get("A_topk_indices") or (0, 0)
        b = shapes.get("B") or shapes.get("B_topk_indices") or (0,)
        return a[1] * length if len(a) > 1 else 0, b[0] * length

    return guess_sizes(files, _ROLE_OF, sizes)


KIND = Kind("vblora", _detect, _compile, _guess_shape)
