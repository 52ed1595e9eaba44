from peft import ShiraConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def whole_rows(layer, r, **kwargs):
    """A mask: some outputs have every value, the others none."""
    rows, columns = layer.weight.shape
    mask = layer.weight.new_zeros(rows * columns)
    mask[-r * (rows + columns) :] = 1
    return mask.view(rows, columns)


def with_mask(**fields):
    config = ShiraConfig(**fields)
    config.mask_fn = whole_rows
    return config


CASES = [
    peft_case("shira", "shira", lambda: ShiraConfig(r=3, target_modules=LINEARS)),
    peft_case(
        "shira-mask",
        "shira",
        lambda: with_mask(r=2, target_modules=".*(q_proj|down_proj)"),
        bases=("qwen",),
        std=0.3,
    ),
    peft_case(
        "shira-head",
        "shira",
        lambda: ShiraConfig(r=4, target_modules=["v_proj", "lm_head"]),
        bases=("llama", "tied"),
        may_lack=("base_layer",),
    ),
]
