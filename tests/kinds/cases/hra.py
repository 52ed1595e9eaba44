from peft import HRAConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = [
    peft_case("hra", "hra", lambda: HRAConfig(r=4, target_modules=LINEARS), std=0.02),
    peft_case(
        "hra-odd-rank-and-head",
        "hra",
        lambda: HRAConfig(r=3, target_modules=["q_proj", "lm_head"], init_weights=False),
        may_lack=("lm_head.weight", "base_layer.weight"),
        bases=("llama", "tied"),
    ),
    peft_case(
        "hra-gram-schmidt",
        "hra",
        lambda: HRAConfig(r=4, apply_GS=True, target_modules=["v_proj", "down_proj"]),
    ),
    peft_case(
        "hra-bias",
        "hra",
        lambda: HRAConfig(r=2, target_modules=["k_proj", "v_proj"], bias="hra_only"),
        bases=("qwen",),
        may_lack=("bias",),
    ),
]
