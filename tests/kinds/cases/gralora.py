from peft import GraloraConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = [
    peft_case("gralora", "gralora", lambda: GraloraConfig(r=4, alpha=8, target_modules=LINEARS)),
    peft_case(
        "gralora-hybrid",
        "gralora",
        lambda: GraloraConfig(
            r=8, gralora_k=4, hybrid_r=3, alpha=5, target_modules=["k_proj", "down_proj"]
        ),
    ),
    peft_case(
        "gralora-bias",
        "gralora",
        lambda: GraloraConfig(
            r=3, gralora_k=1, target_modules=["q_proj", "o_proj"], bias="gralora_only"
        ),
        bases=("qwen",),
        may_lack=("bias",),
    ),
]
