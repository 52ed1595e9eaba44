from peft import LoKrConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# A change of full size at every weight: small, or the rounding of either side shows.
CASES = [
    # W1 full, W2 decomposed.
    peft_case(
        "lokr",
        "lokr",
        lambda: LoKrConfig(r=3, alpha=4, target_modules=LINEARS, rank_dropout=0.1),
        std=0.02,
    ),
    # Both decomposed; where a side is too small, PEFT keeps it full.
    peft_case(
        "lokr-both",
        "lokr",
        lambda: LoKrConfig(r=2, target_modules=LINEARS, decompose_both=True),
        std=0.04,
    ),
    # Both full.
    peft_case(
        "lokr-full",
        "lokr",
        lambda: LoKrConfig(r=16, target_modules=["q_proj", "v_proj", "down_proj"]),
        bases=("qwen",),
        std=0.03,
    ),
    # A factor that divides the sizes, W1 the larger side; and r above W2's smaller side.
    peft_case(
        "lokr-factor",
        "lokr",
        lambda: LoKrConfig(
            r=9, target_modules=["q_proj", "k_proj", "up_proj", "down_proj"], decompose_factor=2
        ),
        std=0.02,
    ),
    peft_case(
        "lokr-large-factor",
        "lokr",
        lambda: LoKrConfig(r=1, target_modules=LINEARS, decompose_factor=32),
        std=0.04,
    ),
    # One that divides none: the divisors below it.
    peft_case(
        "lokr-odd-factor",
        "lokr",
        lambda: LoKrConfig(
            r=2, target_modules=["o_proj", "gate_proj", "lm_head"], decompose_factor=5
        ),
        std=0.02,
        may_lack=("lm_head.base_layer.weight",),
    ),
    peft_case(
        "lokr-patterns",
        "lokr",
        lambda: LoKrConfig(
            r=2,
            target_modules=["q_proj", "gate_proj"],
            rank_pattern={"layers.1.self_attn.q_proj": 5},
            alpha_pattern={"gate_proj": 7},
            layers_to_transform=[0, 1],
        ),
        std=0.04,
    ),
]
