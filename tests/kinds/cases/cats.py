"""CATS and TEAL have no library to import: transformers with a mask in the MLP is the reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tests.kinds.case import Case, Reference
from torch import Tensor, nn
from transformers import PreTrainedModel

# Logits are unlikely to depend on a value so close to a threshold that rounding moves it across.
TOKENS = [(i * 29 + 3) % 128 for i in range(40)]


class Thresholded(nn.Module):
    """`act(x)` where it exceeds the threshold, else 0."""

    def __init__(self, act: nn.Module, threshold: float) -> None:
        super().__init__()
        self.act, self.threshold = act, threshold

    def forward(self, x: Tensor) -> Tensor:
        a = self.act(x)
        return a * (a.abs() > self.threshold)


def reference(model: PreTrainedModel) -> Reference:
    @torch.no_grad()
    def logits(tokens: Tensor) -> Tensor:
        return model(tokens[None]).logits[0].float()

    return logits


@torch.no_grad()
def quantiles(model: PreTrainedModel, modules: Sequence[nn.Module], share: float) -> list[float]:
    """Of |x|, the input of each module."""
    found: dict[nn.Module, float] = {}

    def hook(module: nn.Module, args: tuple[Tensor]) -> None:
        found[module] = float(args[0].abs().quantile(share))

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    model(torch.tensor([TOKENS]))
    for handle in handles:
        handle.remove()
    return [found[module] for module in modules]


def cats_thresholds(model: PreTrainedModel, share: float) -> list[float]:
    """Of |act(gate)|, in every layer."""
    probes = []
    for layer in model.model.layers:
        probe = nn.Identity()
        layer.mlp.act_fn = nn.Sequential(layer.mlp.act_fn, probe)
        probes.append(probe)
    values = quantiles(model, probes, share)
    for layer in model.model.layers:
        layer.mlp.act_fn = layer.mlp.act_fn[0]
    return values


def patched(model: PreTrainedModel, thresholds: Sequence[float]) -> Reference:
    for layer, threshold in zip(model.model.layers, thresholds, strict=True):
        layer.mlp.act_fn = Thresholded(layer.mlp.act_fn, threshold)
    return reference(model)


def write(folder: Path, kind: str, thresholds: object, **fields: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"kind": kind, "version": 1, "thresholds": thresholds, **fields}
    (folder / "turret_adapter.json").write_text(json.dumps(config))


def own(folder: Path, base: PreTrainedModel) -> Reference:
    thresholds = cats_thresholds(base, 0.5)
    write(folder, "cats", thresholds)
    return patched(base, thresholds)


def some_layers(folder: Path, base: PreTrainedModel) -> Reference:
    """A threshold of 0 or below keeps everything; the authors' calibration makes such."""
    thresholds = cats_thresholds(base, 0.9)
    thresholds[0], thresholds[-1] = 0, -0.001
    write(folder, "cats", thresholds, base_model="tiny/base")
    return patched(base, thresholds)


def config_json(thresholds: Sequence[float]) -> dict[str, object]:
    return {
        "model_type": "sparse_llama",
        "hidden_act": "silu",
        "use_sparse_model": True,
        "use_sparse_predictor": False,
        "use_sparse_regularization": False,
        "thresholds": list(thresholds),
    }


def config_only(folder: Path, base: PreTrainedModel) -> Reference:
    thresholds = cats_thresholds(base, 0.7)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(thresholds)))
    return patched(base, thresholds)


def checkpoint(folder: Path, base: PreTrainedModel) -> Reference:
    """With the weights, which are the base's."""
    thresholds = cats_thresholds(base, 0.7)
    base.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config_json(thresholds)))
    return patched(base, thresholds)


# On or off, and nothing but numbers in the configuration.
NUMBERS = {"weighted": False, "stores_tensors": False}
CASES = [
    Case("cats", "cats", own, ("llama", "qwen", "gemma"), **NUMBERS),
    Case("cats-some-layers", "cats", some_layers, **NUMBERS),
    Case("cats-config", "cats", config_only, **NUMBERS),
    Case(
        "cats-checkpoint",
        "cats",
        checkpoint,
        ("llama", "tied"),
        weighted=False,
        on_real_model=False,  # half a gigabyte to write, for the same numbers
    ),
]
