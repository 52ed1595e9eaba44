from peft import LoHaConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# A change of full size at every weight: small, or the rounding of either side shows.
CASES = [
    peft_case(
        "loha",
        "loha",
        lambda: LoHaConfig(r=3, alpha=4, target_modules=LINEARS, module_dropout=0.5),
        std=0.05,
    ),
    # r² beyond the weight's own rank (64, and 32 at k): the change itself is the factor.
    peft_case(
        "loha-square",
        "loha",
        lambda: LoHaConfig(r=11, target_modules=["k_proj", "up_proj", "down_proj"]),
        std=0.05,
        bases=("tied",),
    ),
    peft_case(
        "loha-patterns",
        "loha",
        lambda: LoHaConfig(
            r=2,
            alpha=3,
            target_modules=["q_proj", "lm_head", "gate_proj"],
            rank_pattern={"layers.1.self_attn.q_proj": 5},
            alpha_pattern={r".*\.[02]\.mlp\.gate_proj": 7},
            exclude_modules=r".*layers\.2\.mlp.*",
            use_effective_conv2d=True,
        ),
        std=0.1,
        may_lack=("lm_head.base_layer.weight",),
    ),
]
