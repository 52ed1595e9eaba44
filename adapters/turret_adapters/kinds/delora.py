"""DeLoRA as PEFT saves it: direction and strength apart (Bini et al., 2025).

`W' = W + (l / r) B D A diag(n)`, where D divides every rank-one term by the norms of its two
factors, l is the learned bound, and n holds the norms of the base's columns, stored by training.
"""

from __future__ import annotations

from turret_adapters.files import AdapterFiles
from turret_adapters.peft.low_rank import Factors, LowRankFormat
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.targets import PatternTable
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Program, Site

_FORMAT = LowRankFormat(
    "delora",
    simple_role(
        {
            "delora_A": "A",
            "delora_B": "B",
            "delora_lambda": "lambda",
            "delora_w_norm": "norms",
        },
        suffixes=frozenset(),
    ),
    ("A", "B", "lambda", "norms"),
    # The bounds in the config are those that training began with.
    frozenset({"delora_lambda", "lambda_pattern", "module_dropout", "rank_pattern"}),
    ("delora_only",),
)
_SMALLEST_NORM = 1e-4  # PEFT divides by no less


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    config = _FORMAT.config(files)
    default = config.integer("r", 8, 1)
    ranks = PatternTable(config, "rank_pattern")

    def read(tensors: PeftTensors, site: Site, fan_in: int, fan_out: int) -> Factors:
        found = tensors.at(site)
        rank = ranks.get(found.path, default)
        rank = config.checked_integer(f"the rank of {found.path}", rank, 1)
        a = tensors.read(found.keys["A"], (rank, fan_in), rank_dim=0).float()
        b = tensors.read(found.keys["B"], (fan_out, rank), rank_dim=1).float().T
        bound = tensors.read(found.keys["lambda"], (1,)).float()
        norms = tensors.read(found.keys["norms"], (fan_in,)).float()
        sizes = a.norm(dim=1).clamp(_SMALLEST_NORM) * b.norm(dim=1).clamp(_SMALLEST_NORM)
        return a * norms, b * (bound / rank / sizes)[:, None]

    return _FORMAT.compile(files, shape, config, read)


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "DELORA")


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    return (shapes.get("A") or (0,))[-1], (shapes.get("B") or shapes.get("bias") or (0,))[0]


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _FORMAT.role_of, _sizes)


KIND = Kind("delora", _detect, _compile, _guess_shape)
