from peft import BeftConfig
from tests.kinds.case import peft_case

# PEFT repeats the head, and the embedding with it, where the head is adapted.
COPIES = ("lm_head.base_layer.weight", "lm_head.weight", "embed_tokens.weight")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def case(name, targets, **fields):
    return peft_case(name, "beft", lambda: BeftConfig(target_modules=targets), **fields)


CASES = [
    case("beft", ["v_proj"], bases=("llama", "qwen")),
    case("beft-everywhere", [*LINEARS, "lm_head"], bases=("llama", "tied"), may_lack=COPIES),
]
