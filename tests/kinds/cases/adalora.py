from peft import AdaLoraConfig
from tests.kinds.case import peft_case
from torch import randn_like

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config(**fields):
    return AdaLoraConfig(**{"init_r": 5, "target_r": 2, "total_step": 10, **fields})


def prune(model):
    """What the last step of the training leaves: zeros in E, and rank_pattern."""
    pattern = {}
    for name, parameter in model.base_model.model.named_parameters():
        if ".lora_" not in name:
            continue
        parameter.data += randn_like(parameter) * 0.3
        if "lora_E" in name:
            kept = [(len(pattern) + i) % 3 > 0 for i in range(5)]
            pattern[name] = kept
            for row, keep in enumerate(kept):
                parameter.data[row] *= keep
    model.peft_config["default"].rank_pattern = pattern


CASES = [
    peft_case(
        "adalora",
        "adalora",
        lambda: config(target_modules=LINEARS, lora_alpha=4),
        bases=("llama", "tied"),
        std=0.3,
    ),
    peft_case(
        "adalora-pruned",
        "adalora",
        lambda: config(target_modules=["k_proj", "down_proj"], layers_to_transform=[0, 2]),
        change=prune,
    ),
    peft_case(
        "adalora-bias",
        "adalora",
        lambda: config(target_modules=["q_proj", "lm_head"], bias="lora_only"),
        bases=("qwen",),
        std=0.3,
        may_lack=("bias", "lm_head.base_layer.weight"),
    ),
    # LoRA's fields that AdaLoRA inherits and does not read.
    peft_case(
        "adalora-inherited",
        "adalora",
        lambda: config(
            target_modules=["v_proj"], use_rslora=True, alpha_pattern={"v_proj": 99}, r=3
        ),
        std=0.3,
    ),
]
