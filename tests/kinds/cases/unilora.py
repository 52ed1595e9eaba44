from peft import UniLoraConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = [
    peft_case(
        "unilora",
        "unilora",
        lambda: UniLoraConfig(r=3, theta_d_length=40, save_indices=True, target_modules=LINEARS),
        std=2.0,
    ),
    peft_case(
        "unilora-bias",
        "unilora",
        lambda: UniLoraConfig(
            r=2, save_indices=True, target_modules=["k_proj", "o_proj"], bias="unilora_only"
        ),
        std=0.5,
        bases=("qwen",),
        may_lack=("bias",),
    ),
]
