"""Write random LoRA adapters in PEFT's format, without PEFT: what a benchmark loads.

    python bench/peers/make_adapters.py MODEL FOLDER --count 16

Ranks are 8, 16, 16 and 32 in turn, on all seven linear layers, alpha twice the rank. B is not
zero, so every adapter changes what the model says and no server can skip it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANKS = (8, 16, 16, 32)
# Small against the weights: the adapted model still writes words.
_B_STD = 0.02


def linear_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (out, in) features of each adapted linear of one Llama-family layer."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    query = heads * head_dim
    key_value = (config.get("num_key_value_heads") or heads) * head_dim
    return {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def make_adapter(model: Path, folder: Path, rank: int, seed: int) -> None:
    """Write one adapter, bf16. A is drawn as PEFT initialises it, B with a small deviation."""
    config = json.loads((model / "config.json").read_text())
    generator = torch.Generator().manual_seed(seed)
    shapes = linear_shapes(config)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (num_out, num_in) in shapes.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            bound = num_in**-0.5  # Kaiming's uniform with a = sqrt(5)
            a = torch.empty(rank, num_in).uniform_(-bound, bound, generator=generator)
            b = torch.empty(num_out, rank).normal_(0.0, _B_STD, generator=generator)
            tensors[f"{stem}.lora_A.weight"] = a.bfloat16()
            tensors[f"{stem}.lora_B.weight"] = b.bfloat16()
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(name.split(".")[1] for name in shapes),
    }
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
    (partial / "adapter_config.json").write_text(json.dumps(adapter_config, indent=2) + "\n")
    partial.rename(folder)


def make_adapters(model: Path, folder: Path, count: int, seed: int = 0) -> dict[str, Path]:
    """Write `a0` to `a{count-1}` below `folder` where they are missing; return name to path."""
    paths = {f"a{index}": folder / f"a{index}" for index in range(count)}
    for index, path in enumerate(paths.values()):
        if not path.exists():
            make_adapter(model, path, RANKS[index % len(RANKS)], seed + index)
    return paths


def main() -> None:
    """Write adapters as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the base model")
    parser.add_argument("folder", type=Path, help="where to write a0, a1, ...")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, path in make_adapters(args.model, args.folder, args.count, args.seed).items():
        print(name, path)


if __name__ == "__main__":
    main()
