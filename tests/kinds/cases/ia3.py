from peft import IA3Config
from tests.kinds.case import peft_case


def config(targets, feedforward):
    return lambda: IA3Config(target_modules=targets, feedforward_modules=feedforward)


def same_inputs(model):
    """One vector for all that read one input."""
    for name, parameter in model.named_parameters():
        if "ia3_l" not in name:
            continue
        parameter.data.add_(
            0.3 * parameter.data.new_tensor(range(parameter.numel())).cos().view_as(parameter)
        )


# PEFT repeats the head, and the embedding with it, where the head is adapted.
COPIES = ("lm_head.base_layer.weight", "lm_head.weight", "embed_tokens.weight")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = [
    peft_case(
        "ia3",
        "ia3",
        config(["k_proj", "v_proj", "down_proj"], ["down_proj"]),
        bases=("llama", "qwen", "gemma"),
    ),
    peft_case(
        "ia3-outputs",
        "ia3",
        config([*LINEARS, "lm_head"], []),
        bases=("llama", "tied"),
        may_lack=COPIES,
    ),
    peft_case(
        "ia3-inputs",
        "ia3",
        config([*LINEARS, "lm_head"], LINEARS),
        change=same_inputs,
        may_lack=COPIES,
    ),
    peft_case(
        "ia3-head-input",
        "ia3",
        config(["o_proj", "lm_head"], ["lm_head", "o_proj"]),
        may_lack=COPIES,
    ),
    peft_case(
        "ia3-patterns", "ia3", config(r".*layers\.[02].*(down|v)_proj", r".*\.2\..*down_proj")
    ),
]
