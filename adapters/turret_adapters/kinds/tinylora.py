"""TinyLoRA as PEFT saves it: `W' = W + B (sum_i v_i P_i) A` (Morris et al., 2026).

A and B are singular vectors of the trained base and stored; P is random and stored by default; v is
a vector of a few numbers that a group of modules shares, in model order.
"""

from __future__ import annotations

import torch

from turret_adapters.files import AdapterFiles
from turret_adapters.peft.low_rank import Factors, LowRankFormat
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

_FORMAT = LowRankFormat(
    "tinylora",
    simple_role({f"tinylora_{x}": x for x in "ABP"}, suffixes=frozenset()),
    ("A", "B", "P"),
    frozenset(
        {
            "init_v_bound",
            "projection_seed",
            "save_projection",
            "tinylora_dropout",
            "u",
            "weight_tying",
        }
    ),
    ("tinylora_only",),
    adapts_embedding=True,
)


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    config = _FORMAT.config(files)
    wanted_rank = config.integer("r", 2, 1)
    size = config.integer("u", 64, 1)
    tying = config.number("weight_tying", 0.0)
    if not 0 <= tying <= 1:
        raise config.malformed(f"weight_tying is {tying:g}, not between 0 and 1")
    if config.get("save_projection") is False:
        raise config.unsupported(
            "save_projection is off: the file lacks the projections P, and what they were depends "
            "on the machine that drew them",
            "Load it where it was trained, set save_projection, and save it again.",
        )

    def read(tensors: PeftTensors, site: Site, fan_in: int, fan_out: int) -> Factors:
        keys, rank = tensors.at(site).keys, min(wanted_rank, fan_in, fan_out)
        key = f"base_model.tinylora_v.{_group(tensors, site, tying)}"
        if not tensors.has(key):
            raise tensors.malformed(f"{key} is missing, the vector of {tensors.at(site).path}")
        v = tensors.read(key, (size,)).float()
        p = tensors.read(keys["P"], (size, rank, rank), rank_dim=1).float()
        middle = torch.einsum("i,ijk->jk", v, p)
        # Of an embedding PEFT decomposes the table [vocab, hidden], where B has the rows.
        is_embedding = site.module is Module.EMBED
        rows, columns = (fan_in, fan_out) if is_embedding else (fan_out, fan_in)
        a = tensors.read(keys["A"], (rank, columns), rank_dim=0).float()
        b = tensors.read(keys["B"], (rows, rank), rank_dim=1).float()
        if is_embedding:
            # Added to the embedded tokens as they are, where our site lies before their scale.
            return b.T, middle @ a / tensors.shape.embed_scale
        return a, (b @ middle).T

    return _FORMAT.compile(files, shape, config, read)


def _group(tensors: PeftTensors, site: Site, tying: float) -> int:
    """Which vector a module shares: PEFT divides the adapted modules evenly, in model order."""
    adapted = [s for s in tensors.shape.sites() if "A" in tensors.at(s).keys]
    num_groups = max(1, round(len(adapted) * (1 - tying)))
    group_size = max(1, len(adapted) // num_groups)
    return min(adapted.index(site) // group_size, num_groups - 1)


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "TINYLORA")


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    return (shapes.get("A") or (0,))[-1], (shapes.get("B") or (0,))[0]


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _FORMAT.role_of, _sizes)


KIND = Kind("tinylora", _detect, _compile, _guess_shape)
