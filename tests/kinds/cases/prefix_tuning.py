from peft import PrefixTuningConfig
from tests.kinds.case import peft_case

TASK = "CAUSAL_LM"


def fill(model):
    """Values of the size of a real model's: PEFT's beginning, 1, drowns what it is asked."""
    model.prompt_encoder["default"].embedding.weight.data.normal_(0, 0.3)


CASES = [
    peft_case(  # grouped-query attention: 4 heads share 2 of keys and values
        "prefix_tuning",
        "prefix_tuning",
        lambda: PrefixTuningConfig(task_type=TASK, num_virtual_tokens=6),
        change=fill,
        bases=("llama", "qwen", "gemma"),
        weighted=False,
    ),
    peft_case(  # more than a KV block and than a step
        "prefix_tuning-long",
        "prefix_tuning",
        lambda: PrefixTuningConfig(task_type=TASK, num_virtual_tokens=35),
        change=fill,
        weighted=False,
    ),
    peft_case(
        "prefix_tuning-projection",
        "prefix_tuning",
        lambda: PrefixTuningConfig(
            task_type=TASK, num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=16
        ),
        std=0.4,
        weighted=False,
    ),
]
