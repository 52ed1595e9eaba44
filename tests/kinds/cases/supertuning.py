from peft import SupertuningConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = [
    peft_case(
        "supertuning",
        "supertuning",
        lambda: SupertuningConfig(sparsity=0.93, target_modules=LINEARS),
    ),
    peft_case(
        "supertuning-lora",
        "supertuning",
        lambda: SupertuningConfig(
            sparsity=0.9, select_top=False, r=3, lora_alpha=7, target_modules=["k_proj", "up_proj"]
        ),
        bases=("qwen",),
    ),
    peft_case(
        "supertuning-default-alpha",
        "supertuning",
        lambda: SupertuningConfig(sparsity=0.5, r=2, target_modules=["o_proj"]),
    ),
]
