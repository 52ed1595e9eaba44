from peft import VeraConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = [
    peft_case("vera", "vera", lambda: VeraConfig(r=5, target_modules=LINEARS), std=0.5),
    # A and B are as large as the largest adapted linear, not as the largest of the base.
    peft_case(
        "vera-narrow",
        "vera",
        lambda: VeraConfig(r=8, target_modules=["k_proj", "o_proj"], layers_to_transform=[1]),
        std=1.0,
        bases=("tied",),
    ),
    peft_case(
        "vera-drawn",
        "vera",
        lambda: VeraConfig(
            r=16,
            target_modules=["q_proj", "down_proj"],
            save_projection=False,
            projection_prng_key=12345,
        ),
        std=0.5,
    ),
    peft_case(
        "vera-bias",
        "vera",
        lambda: VeraConfig(r=4, target_modules=["q_proj", "lm_head"], bias="vera_only"),
        bases=("qwen",),
        std=0.5,
        may_lack=("bias", "lm_head.base_layer.weight"),
    ),
]
