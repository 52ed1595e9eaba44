from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tests.kinds.case import Case, Reference
from tests.kinds.cases.cats import quantiles, reference, write
from torch import Tensor, nn
from transformers import PreTrainedModel

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def linears(model: PreTrainedModel, name: str) -> list[nn.Module]:
    """That linear of every layer."""
    return [
        getattr(layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp, name)
        for layer in model.model.layers
    ]


def masked(module: nn.Module, threshold: float) -> None:
    def hook(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0] * (args[0].abs() > threshold),)

    module.register_forward_pre_hook(hook)


def patched(model: PreTrainedModel, thresholds: dict[str, list[float]]) -> Reference:
    for name, values in thresholds.items():
        for module, threshold in zip(linears(model, name), values, strict=True):
            masked(module, threshold)
    return reference(model)


def case(name: str, modules: Sequence[str], share: float, bases: tuple[str, ...]) -> Case:
    def make(folder: Path, base: PreTrainedModel) -> Reference:
        with torch.no_grad():
            thresholds = {n: quantiles(base, linears(base, n), share) for n in modules}
        write(folder, "teal", thresholds)
        return patched(base, thresholds)

    return Case(name, "teal", make, bases, weighted=False, stores_tensors=False)


CASES = [
    case("teal", LINEARS, 0.4, ("llama", "qwen", "gemma")),
    case("teal-some-linears", ("k_proj", "up_proj", "down_proj"), 0.6, ("llama",)),
]
