from peft import LNTuningConfig
from tests.kinds.case import peft_case


def case(name, targets, **fields):
    return peft_case(name, "ln_tuning", lambda: LNTuningConfig(target_modules=targets), **fields)


CASES = [
    case(
        "ln_tuning",
        ["input_layernorm", "post_attention_layernorm", "norm"],
        bases=("llama", "tied", "qwen"),
        std=0.02,
    ),
    case("ln_tuning-one-layer", r".*layers\.1\.post_attention_layernorm"),
    case(  # PEFT's default for Gemma 3
        "ln_tuning-four-norms",
        [
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
            "norm",
        ],
        bases=("gemma",),
        std=0.05,
    ),
    case("ln_tuning-head", r".*layers\.2\.input_layernorm|model\.norm"),
]
