from peft import LoraConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = [
    peft_case("lora", "lora", lambda: LoraConfig(r=4, target_modules=LINEARS), bases=("llama",)),
    peft_case(
        "lora-bias",
        "lora",
        lambda: LoraConfig(r=3, target_modules=["q_proj", "o_proj"], bias="lora_only"),
        bases=("qwen",),
        may_lack=("bias",),
    ),
]
