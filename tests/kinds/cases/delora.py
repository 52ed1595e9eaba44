from peft import DeloraConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = [
    peft_case("delora", "delora", lambda: DeloraConfig(r=4, target_modules=LINEARS)),
    peft_case(
        "delora-patterns",
        "delora",
        lambda: DeloraConfig(
            r=3,
            delora_lambda=4,
            rank_pattern={"layers.1.self_attn.q_proj": 5},
            lambda_pattern={"q_proj": 2},
            target_modules=["q_proj", "up_proj"],
            init_weights=False,
        ),
        bases=("tied",),
    ),
    peft_case(
        "delora-bias",
        "delora",
        lambda: DeloraConfig(r=2, target_modules=["v_proj", "o_proj"], bias="delora_only"),
        bases=("qwen",),
        may_lack=("bias",),
    ),
]
