"""LoHa as PEFT saves it: `W' = W + s (W1a W1b) ∘ (W2a W2b)` (FedPara: Hyeon-Woo et al., 2022).

A Hadamard product of two rank-r matrices is one matrix of rank r² at most: its factors are the
products of every column of W1a with every column of W2a, and of every row of W1b with every row of
W2b (Khatri–Rao products). Where r² exceeds the weight's own rank, the change itself is the factor.
"""

from __future__ import annotations

import torch

from turret_adapters.components import LowRank
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.low_rank import compile_branches
from turret_adapters.peft.lycoris import LycorisSettings
from turret_adapters.peft.roles import SiteTensors, guess_sizes, simple_role
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Program, Site

_ROLES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_ROLE_OF = simple_role({role: role for role in _ROLES})


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        self._settings = LycorisSettings(files)
        self._tensors = PeftTensors(files, shape, self._settings.config, _ROLE_OF)
        self._shape = shape

    def program(self) -> Program:
        return compile_branches(
            "loha", self._tensors, self._settings.targets, lambda *_: _ROLES, self._branch
        )

    def _branch(self, site: Site, found: SiteTensors) -> LowRank:
        rank, scale = self._settings.rank(found.path), self._settings.scale(found.path)
        fan_in, fan_out = self._shape.dims[site.module]
        tall, wide = (fan_out, rank), (rank, fan_in)
        keys, read = found.keys, self._tensors.read
        w1a = self._tensors.read_scaled(keys["hada_w1_a"], tall, scale, rank_dim=1)
        w1b = read(keys["hada_w1_b"], wide, rank_dim=0).float()
        w2a = read(keys["hada_w2_a"], tall, rank_dim=1).float()
        w2b = read(keys["hada_w2_b"], wide, rank_dim=0).float()
        product = rank * rank
        self._tensors.check_rank(site, min(product, fan_in, fan_out))
        if product > min(fan_in, fan_out):
            change = (w1a @ w1b) * (w2a @ w2b)
            if fan_out <= fan_in:
                return LowRank(site, change, torch.eye(fan_out))
            return LowRank(site, torch.eye(fan_in), change.T.contiguous())
        a = (w1b[:, None] * w2b).view(product, fan_in)
        b = (w1a.T.contiguous()[:, None] * w2a.T.contiguous()).view(product, fan_out)
        return LowRank(site, a, b)


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    return (shapes.get("hada_w1_b") or (0,))[-1], (shapes.get("hada_w1_a") or (0,))[0]


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "LOHA")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _ROLE_OF, _sizes)


KIND = Kind("loha", _detect, _compile, _guess_shape)
