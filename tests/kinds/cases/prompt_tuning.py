import torch
from peft import MultitaskPromptTuningConfig, PromptEncoderConfig, PromptTuningConfig
from tests.kinds.case import peft_case

TASK = "CAUSAL_LM"


def fill_tasks(model):
    encoder = model.prompt_encoder["default"]
    for parameter in (encoder.prefix_task_cols, encoder.prefix_task_rows):
        parameter.data = torch.randn_like(parameter)
    encoder.embedding.weight.data = torch.randn_like(encoder.embedding.weight)


CASES = [
    peft_case(
        "prompt_tuning",
        "prompt_tuning",
        lambda: PromptTuningConfig(task_type=TASK, num_virtual_tokens=5),
        bases=("llama", "tied", "qwen", "gemma"),
        weighted=False,
    ),
    peft_case(  # more than a KV block and than a step
        "prompt_tuning-long",
        "prompt_tuning",
        lambda: PromptTuningConfig(task_type=TASK, num_virtual_tokens=37),
        weighted=False,
    ),
    *(
        peft_case(
            f"p_tuning-{how}",
            "prompt_tuning",
            lambda how=how: PromptEncoderConfig(
                task_type=TASK,
                num_virtual_tokens=4,
                encoder_reparameterization_type=how,
                encoder_hidden_size=16,
            ),
            std=0.4,
            weighted=False,
        )
        for how in ("MLP", "LSTM")
    ),
    *(
        peft_case(
            f"multitask_prompt_tuning-{task}",
            "prompt_tuning",
            lambda: MultitaskPromptTuningConfig(
                task_type=TASK, num_virtual_tokens=3, num_tasks=3, num_ranks=2
            ),
            change=fill_tasks,
            edit_config={"task_id": task},
            call={"task_ids": torch.tensor([task])},
            weighted=False,
        )
        for task in (0, 2)
    ),
]
