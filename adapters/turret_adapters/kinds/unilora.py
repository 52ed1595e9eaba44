"""Uni-LoRA as PEFT saves it with its indices: every factor drawn from one vector (2025).

`A = theta[I_A] * S_A`, `B = theta[I_B] * S_B`, elementwise, and `W' = W + BA`. Without the indices
a file holds theta alone; what draws the rest again promises no stable stream of numbers.
"""

from __future__ import annotations

from torch import Tensor

from turret_adapters.errors import quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.low_rank import Factors, LowRankFormat
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Program, Site

_FORMAT = LowRankFormat(
    "unilora",
    simple_role({f"unilora_{x}_{f}": f"{x} {f}" for x in ("indices", "scales") for f in "AB"}),
    ("indices A", "indices B", "scales A", "scales B"),
    frozenset(
        {"init_theta_d_bound", "proj_seed", "save_indices", "theta_d_length", "unilora_dropout"}
    ),
    ("unilora_only",),
)
_THETA = "base_model.unilora_theta_d"


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    config = _FORMAT.config(files)
    rank = config.integer("r", 4, 1)
    length = config.integer("theta_d_length", 256, 1)
    if not config.flag("save_indices"):
        raise config.unsupported(
            "save_indices is off: the file lacks the indices, and what they were depends on the "
            "version of numpy that drew them",
            "Load it where it was trained, set save_indices, and save it again.",
        )

    def read(tensors: PeftTensors, site: Site, fan_in: int, fan_out: int) -> Factors:
        if not tensors.has(_THETA):
            raise tensors.malformed(f"{_THETA} is missing")
        theta, keys = tensors.read(_THETA, (length,)).float(), tensors.at(site).keys

        def factor(name: str, size: tuple[int, int], rank_dim: int) -> Tensor:
            key = keys[f"indices {name}"]
            indices = tensors.read(key, size, rank_dim=rank_dim, integers=True).long()
            if indices.min() < 0 or indices.max() >= length:
                raise tensors.malformed(f"{quote(key)} points outside the {length} numbers")
            scales = tensors.read(keys[f"scales {name}"], size, rank_dim=rank_dim)
            return theta[indices] * scales.float()

        return factor("A", (rank, fan_in), 0), factor("B", (fan_out, rank), 1).T

    return _FORMAT.compile(files, shape, config, read)


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "UNILORA")


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    return (shapes.get("indices A") or (0,))[-1], (shapes.get("indices B") or (0,))[0]


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _FORMAT.role_of, _sizes)


KIND = Kind("unilora", _detect, _compile, _guess_shape)
