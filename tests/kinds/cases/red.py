from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.kinds import hooks
from tests.kinds.case import Case, Reference, spread
from transformers import PreTrainedModel


def make(kinds, layers=(0, 1, 2), dtype=torch.float32):
    def write_and_hook(folder: Path, base: PreTrainedModel) -> Reference:
        torch.manual_seed(5)
        folder.mkdir()
        stored = {}
        for layer in layers:
            size, scale = (1, base.config.hidden_size), spread(base) / 4
            scaling, bias = torch.ones(size), torch.zeros(size)
            prefix = f"base_model.model.layers.{layer}.mlp.down_proj.delta_vector."
            if "scaling" in kinds:
                scaling = (1 + torch.randn(size) * scale).to(dtype)
                stored[f"{prefix}activation_scaling"] = scaling
            if "bias" in kinds:
                bias = (torch.randn(size) * scale).to(dtype)
                stored[f"{prefix}activation_bias"] = bias
            hooks.change_output(
                base.model.layers[layer].mlp.down_proj, lambda h, s=scaling, b=bias: h * s + b
            )
        save_file(stored, folder / "delta_vector.safetensors")
        return hooks.reference(base)

    return write_and_hook


CASES = [
    Case("red", "red", make(("scaling", "bias")), bases=("llama", "llama-biased")),
    Case("red-bf16", "red", make(("scaling", "bias"), dtype=torch.bfloat16)),
    # Without one of a model's layers the rest is an adapter, too.
    Case("red-scaling", "red", make(("scaling",), (0, 2)), may_lack=("scaling",)),
    Case("red-bias", "red", make(("bias",), (1,)), may_lack=()),
]
