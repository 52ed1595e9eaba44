import torch
from peft import PolyConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config(**fields):
    return PolyConfig(task_type="CAUSAL_LM", r=3, **fields)


CASES = [
    peft_case(
        "poly",
        "poly",
        lambda: config(n_tasks=3, n_skills=4, target_modules=LINEARS),
        std=0.3,
        edit_config={"task_id": 2},
        call={"task_ids": torch.tensor([2])},
    ),
    peft_case(
        "poly-splits",
        "poly",
        lambda: config(n_tasks=2, n_skills=3, n_splits=4, target_modules=["q_proj", "down_proj"]),
        bases=("qwen",),
        std=0.5,
        edit_config={"task_id": 0},
        call={"task_ids": torch.tensor([0])},
    ),
    peft_case(
        "poly-one-task",
        "poly",
        lambda: config(n_skills=2, target_modules=["up_proj", "lm_head"]),
        std=0.3,
        may_lack=("base_layer",),
        call={"task_ids": torch.tensor([0])},
    ),
]
