from peft import RoadConfig
from tests.kinds.case import peft_case

# PEFT repeats the head, and the embedding with it, where the head is adapted.
COPIES = ("lm_head.base_layer.weight", "lm_head.weight", "embed_tokens.weight")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def case(variant, group, targets, **fields):
    return peft_case(
        f"road-{variant[-1]}-{group}",
        "road",
        lambda: RoadConfig(variant=variant, group_size=group, target_modules=targets),
        **fields,
    )


CASES = [
    case("road_1", 32, LINEARS, bases=("llama", "qwen")),
    case("road_2", 2, LINEARS),
    case("road_4", 16, LINEARS),
    case("road_4", 32, ["q_proj", "lm_head"], bases=("tied",), may_lack=COPIES),
]
