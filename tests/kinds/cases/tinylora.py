from peft import TinyLoraConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = [
    peft_case("tinylora", "tinylora", lambda: TinyLoraConfig(r=2, u=5, target_modules=LINEARS)),
    peft_case(
        "tinylora-tied-vectors-and-embedding",
        "tinylora",
        lambda: TinyLoraConfig(
            r=3, u=4, weight_tying=0.6, target_modules=["embed_tokens", "v_proj", "down_proj"]
        ),
        bases=("llama", "tied", "gemma"),
        may_lack=("embed_tokens.weight", "base_layer.weight"),
    ),
    peft_case(
        "tinylora-bias",
        "tinylora",
        lambda: TinyLoraConfig(
            u=3, weight_tying=1.0, target_modules=["q_proj", "o_proj"], bias="tinylora_only"
        ),
        bases=("qwen",),
        may_lack=("bias",),
    ),
]
