"""GraLoRA as PEFT saves it: a low-rank change for every block of the weight (Jung et al., 2025).

The weight is cut into k by k blocks; block (j, n) changes by rank r / k, from input part n to
output part j. Side by side that is one change of rank k r. `hybrid_r` adds a plain LoRA to it.
"""

from __future__ import annotations

import torch

from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.low_rank import Factors, LowRankFormat
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Program, Site

_FORMAT = LowRankFormat(
    "gralora",
    simple_role(
        {
            "gralora_A": "A",
            "gralora_B": "B",
            "gralora_A_general": "general A",
            "gralora_B_general": "general B",
        }
    ),
    ("A", "B"),
    frozenset({"alpha", "gralora_dropout", "gralora_k", "hybrid_r"}),
    ("gralora_only",),
)


class _Reader:
    """The factors, by the settings of one config."""

    def __init__(self, config: PeftConfig):
        self._rank = config.integer("r", 32, 1)
        self._k = config.integer("gralora_k", 2, 1)
        self._hybrid = config.integer("hybrid_r", 0, 0)
        if self._rank % self._k:
            raise config.malformed(f"gralora_k {self._k} does not divide r {self._rank}")
        self._scale = config.number("alpha", 64) / (self._rank + self._hybrid)
        self.roles = ("A", "B") + (("general A", "general B") if self._hybrid else ())

    def read(self, tensors: PeftTensors, site: Site, fan_in: int, fan_out: int) -> Factors:
        """A [k, in / k, r] and B [k, r, out / k], spread over the whole input and output."""
        keys, k, rank = tensors.at(site).keys, self._k, self._rank
        if fan_in % k or fan_out % k:
            raise tensors.wrong_base(
                f"gralora_k {k} does not divide the {fan_in} inputs and {fan_out} outputs of "
                f"{tensors.at(site).path}"
            )
        size_a, size_b = (k, fan_in // k, rank), (k, rank, fan_out // k)
        stored_a = tensors.read(keys["A"], size_a, rank_dim=2).float()
        stored_b = tensors.read_scaled(keys["B"], size_b, self._scale, rank_dim=1)
        # Rank row (n, j, s) reads input part n alone and writes output part j alone.
        a = torch.zeros(k, rank, k, fan_in // k)
        a.diagonal(dim1=0, dim2=2).copy_(stored_a.permute(2, 1, 0))
        b = torch.zeros(k, k, rank // k, k, fan_out // k)
        parts = stored_b.view(k, k, rank // k, fan_out // k)  # [j, n, s, out / k]
        b.diagonal(dim1=1, dim2=3).copy_(parts.permute(1, 2, 3, 0))
        a, b = a.view(k * rank, fan_in), b.view(k * rank, fan_out)
        if not self._hybrid:
            return a, b
        general_a = tensors.read(keys["general A"], (self._hybrid, fan_in), rank_dim=0)
        general_b = tensors.read_scaled(
            keys["general B"], (fan_out, self._hybrid), self._scale, rank_dim=1
        )
        return torch.cat([a, general_a.float()]), torch.cat([b, general_b.T])


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    config = _FORMAT.config(files)
    reader = _Reader(config)
    return _FORMAT.compile(files, shape, config, reader.read, roles=reader.roles)


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "GRALORA")


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    a, b = shapes.get("A") or (0, 0, 0), shapes.get("B") or (0, 0, 0)
    if len(a) != 3 or len(b) != 3:
        return 0, 0
    return a[0] * a[1], b[0] * b[2]


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _FORMAT.role_of, _sizes)


KIND = Kind("gralora", _detect, _compile, _guess_shape)
