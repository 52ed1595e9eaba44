"""The reference is the paper's algorithm on the published file, computed by PEFT."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from tests.kinds.case import Case, Reference, peft_case
from torch import Tensor
from transformers import PreTrainedModel

from turret_adapters.compress.compeft import compress


def compressed(state: dict[str, Tensor], density: float, alpha: float) -> dict[str, Tensor]:
    """Algorithm 1 over all tensors together, written down anew."""
    keys = [key for key in state if "lora_" in key and not key.endswith("bias")]
    tau = torch.cat([state[key].float().flatten() for key in keys])
    least = tau.abs().sort().values[len(tau) - int(len(tau) * density) - 1]
    new = torch.where(tau.abs() >= least, tau.sign() * alpha * tau.std(), 0.0)
    parts = new.split([state[key].numel() for key in keys])
    return state | {k: part.view_as(state[k]) for k, part in zip(keys, parts, strict=True)}


def compeft_case(name: str, density: float, alpha: float, **config: Any) -> Case:
    def make(folder: Path, base: PreTrainedModel) -> Reference:
        state = {key: value.clone() for key, value in base.state_dict().items()}
        source = folder.with_name("source")
        peft_case(name, "lora", lambda: LoraConfig(**config)).make(source, base)
        compress(source, folder, density=density, alpha=alpha, per_tensor=False)
        weights = source / "adapter_model.safetensors"
        save_file(compressed(load_file(weights), density, alpha), weights)
        fresh = type(base)(base.config)
        fresh.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = PeftModel.from_pretrained(fresh, str(source)).eval()
        shutil.rmtree(source)

        @torch.no_grad()
        def logits(tokens: Tensor) -> Tensor:
            return loaded(tokens[None]).logits[0].float()

        return logits

    bases = ("qwen",) if "bias" in config else ("llama",)
    return Case(name, "compeft", make, bases=bases)


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = [
    compeft_case("compeft", 0.2, 1.5, r=4, target_modules=LINEARS),
    compeft_case("compeft-dense", 0.7, 1.0, r=4, target_modules=["q_proj", "up_proj"]),
    compeft_case(
        "compeft-bias",
        0.3,
        1.5,
        r=6,
        target_modules=["q_proj", "o_proj"],
        bias="lora_only",
        lora_bias=True,
    ),
]
