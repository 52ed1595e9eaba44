"""pyreft's forward passes are hooks on the layers; here they are, on transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.kinds.case import Case, Reference
from torch import Tensor
from transformers import PreTrainedModel

RANK = 3


def locations(positions: str, length: int, total: int) -> list[int]:
    """pyreft's: first and last tokens of the prompt, at most half of it each."""
    if positions == "all":
        return list(range(total))
    counts = {part[0]: min(length // 2, int(part[1:])) for part in positions.split("+")}
    return [*range(counts.get("f", 0)), *range(length - counts.get("l", 0), length)]


def write(folder: Path, hidden: int, std: float = 0.3, **config: object) -> dict[str, Tensor]:
    config = {"kind": "loreft", "version": 1, "rank": RANK, "layers": [0, 2], **config}
    folder.mkdir(parents=True)
    (folder / "turret_adapter.json").write_text(json.dumps(config))
    torch.manual_seed(5)
    tensors: dict[str, Tensor] = {}
    for layer in config["layers"]:
        rotation, _ = torch.linalg.qr(torch.randn(hidden, RANK))
        tensors[f"layers.{layer}.rotate_layer"] = rotation.contiguous()
        tensors[f"layers.{layer}.weight"] = torch.randn(RANK, hidden) * std
        tensors[f"layers.{layer}.bias"] = torch.randn(RANK)
    save_file(tensors, folder / "adapter.safetensors")
    return tensors


def hooked(
    model: PreTrainedModel,
    tensors: dict[str, Tensor],
    positions: str,
    method: str = "loreft",
    prompt: int | None = None,
) -> Reference:
    """The model with its layers' outputs edited.

    Args:
        model: changed.
        tensors: as stored.
        positions: as in the config.
        method: likewise.
        prompt: its length; None where the positions do not depend on it.
    """
    total = 0

    def edit(layer: int):
        rotation = tensors[f"layers.{layer}.rotate_layer"]
        weight, bias = tensors[f"layers.{layer}.weight"], tensors[f"layers.{layer}.bias"]

        def after(module: torch.nn.Module, args: object, output: Tensor) -> Tensor:
            h = output.clone()
            at = locations(positions, total if prompt is None else prompt, total)
            base = h[:, at]
            change = base @ weight.T + bias
            if method == "loreft":
                change = change - base @ rotation
            h[:, at] = base + change @ rotation.T
            return h

        return after

    for index, layer in enumerate(model.model.layers):
        if f"layers.{index}.bias" in tensors:
            layer.register_forward_hook(edit(index))

    @torch.no_grad()
    def logits(tokens: Tensor) -> Tensor:
        nonlocal total
        total = len(tokens)
        return model(tokens[None]).logits[0].float()

    return logits


def case(name: str, positions: str, method: str, bases: tuple[str, ...] = ("llama",)) -> Case:
    def make(folder: Path, base: PreTrainedModel) -> Reference:
        tensors = write(folder, base.config.hidden_size, positions=positions, method=method)
        return hooked(base, tensors, positions, method)

    return Case(name, "loreft", make, bases=bases)


CASES = [
    case("loreft", "all", "loreft", ("llama", "qwen")),
    case("loreft-first", "f2", "loreft"),
    case("direft", "all", "direft"),
]
