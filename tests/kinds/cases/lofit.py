"""LoFiT has no library to import: transformers with a hook before o_proj is the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tests.kinds.case import Case, Reference
from torch import Tensor
from transformers import PreTrainedModel

Vectors = dict[tuple[int, int], Tensor]  # (layer, head) -> [head_dim]


def hooked(model: PreTrainedModel, v: Vectors, a: Vectors | None = None) -> Reference:
    """The model with `z <- (1 + A) z + v` before every o_proj."""
    d = model.model.layers[0].self_attn.head_dim

    def hook(layer: int) -> Callable:
        def before(module: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            z = args[0].clone()
            for table, change in ((a or {}, torch.mul), (v, lambda _, vector: vector)):
                for (where, head), vector in table.items():
                    if where == layer:
                        part = z[..., head * d : head * d + d]
                        part += change(part.clone(), vector)
            return (z,)

        return before

    for index, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.register_forward_pre_hook(hook(index))

    @torch.no_grad()
    def logits(tokens: Tensor) -> Tensor:
        return model(tokens[None]).logits[0].float()

    return logits


def drawn(heads: list[tuple[int, int]], d: int, std: float) -> Vectors:
    return {head: torch.randn(d) * std for head in heads}


def write_compact(folder: Path, v: Vectors, a: Vectors | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"kind": "lofit", "version": 1, "base_model": "tiny/base"}
    (folder / "turret_adapter.json").write_text(json.dumps(config))
    tensors = {
        "layers": torch.tensor([layer for layer, _ in v]),
        "heads": torch.tensor([head for _, head in v]),
        "v": torch.stack(list(v.values())),
    }
    if a is not None:
        tensors["A"] = torch.stack([a[head] for head in v])
    save_file(tensors, folder / "adapter.safetensors")


def compact(scaled: bool) -> Callable[[Path, PreTrainedModel], Reference]:
    def make(folder: Path, base: PreTrainedModel) -> Reference:
        torch.manual_seed(3)
        d = base.model.layers[0].self_attn.head_dim
        heads = [(2, 1), (0, 3), (2, 0)]
        v = drawn(heads, d, 0.5)
        a = drawn(heads, d, 0.5) if scaled else None
        write_compact(folder, v, a)
        return hooked(base, v, a)

    return make


def whole_model(folder: Path, base: PreTrainedModel) -> Reference:
    """As LoFiT's code saves it: all heads, most of them zero, in the files of the model."""
    torch.manual_seed(4)
    config = base.config
    d = base.model.layers[0].self_attn.head_dim
    every = [
        (x, h) for x in range(len(base.model.layers)) for h in range(config.num_attention_heads)
    ]
    v, a = drawn(every, d, 0.0), drawn(every, d, 0.0)
    v |= drawn([(0, 2), (2, 3)], d, 0.5)
    a |= drawn([(1, 0)], d, 0.5)
    base.save_pretrained(folder)
    path = folder / "model.safetensors"
    names = {"v": v, "A": a}
    extra = {
        f"model.layers.{layer}.self_attn.attn_{name}.{head}": vector
        for name, table in names.items()
        for (layer, head), vector in table.items()
    }
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    return hooked(base, v, a)


CASES = [
    Case("lofit", "lofit", compact(scaled=False)),
    Case(
        "lofit-scaled",
        "lofit",
        compact(scaled=True),
        bases=("llama", "qwen", "gemma"),
        may_lack=("A",),
    ),
    Case("lofit-whole", "lofit", whole_model, bases=("llama", "tied", "qwen", "gemma")),
]
