"""LoRAMoE's own PEFT is not packaged: its formula by hooks on transformers' model."""

import json

import torch
from safetensors.torch import save_file
from tests.kinds.case import Case, spread

BLOCKS = {"q_proj": "self_attn", "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "inference_mode": True,
    "blc_alpha": 0.0,
    "blc_weight": 0.0,
    "lora_dropout": 0.05,
    "merge_weights": False,
    "fan_in_fan_out": False,
    "enable_lora": None,
    "bias": "none",
    "modules_to_save": None,
}


def make(targets, *, rank, experts, alpha):
    def write(folder, base):
        torch.manual_seed(4)
        tensors, scale = {}, 0.1 * spread(base)

        def adapt(prefix, linear):
            fan_out, fan_in = linear.weight.shape
            a = [torch.randn(rank, fan_in) * scale for _ in range(experts)]
            b = [torch.randn(fan_out, rank) * scale for _ in range(experts)]
            route = torch.randn(experts, fan_in) * 3 * scale
            for i in range(experts):
                tensors[f"{prefix}.lora_A{i}.weight"] = a[i]
                tensors[f"{prefix}.lora_B{i}.weight"] = b[i]
            tensors[f"{prefix}.lora_route.weight"] = route

            def hook(module, inputs, output):
                (x,) = inputs
                gate = (x @ route.T).softmax(-1, dtype=torch.float32)
                for i in range(experts):
                    branch = x @ a[i].T @ b[i].T
                    output = output + gate[..., i, None] * branch * (alpha / rank)
                return output

            linear.register_forward_hook(hook)

        for number, layer in enumerate(base.model.layers):
            for target in targets:
                block = BLOCKS[target]
                path = f"base_model.model.model.layers.{number}.{block}.{target}"
                adapt(path, getattr(getattr(layer, block), target))
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        sizes = {"r": rank, "lora_alpha": alpha, "lora_nums": experts, "target_modules": targets}
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG | sizes))

        @torch.no_grad()
        def logits(tokens):
            return base(tokens[None]).logits[0].float()

        return logits

    return write


CASES = [
    Case(
        "loramoe",
        "loramoe",
        make(["gate_proj", "up_proj", "down_proj"], rank=4, experts=8, alpha=2),
    ),
    Case(
        "loramoe-odd",
        "loramoe",
        make(["q_proj", "up_proj"], rank=3, experts=3, alpha=5),
        bases=("qwen",),
    ),
]
