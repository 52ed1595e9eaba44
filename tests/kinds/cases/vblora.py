import torch
from peft import VBLoRAConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config(**fields):
    return VBLoRAConfig(**{"r": 3, "num_vectors": 20, "vector_length": 16, **fields})


def train(model):
    """Logits far enough apart that the choice of vectors is clear."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 0.3 if "bank" in name else 1.0
            parameter.data += torch.randn_like(parameter) * scale


CASES = [
    peft_case("vblora", "vblora", lambda: config(target_modules=LINEARS), change=train),
    peft_case(
        "vblora-topk",
        "vblora",
        lambda: config(target_modules=LINEARS, topk=3, save_only_topk_weights=True),
        change=train,
        bases=("llama", "tied"),
    ),
    # So many vectors that indices are stored as int32.
    peft_case(
        "vblora-many",
        "vblora",
        lambda: config(
            target_modules=["q_proj", "down_proj"],
            layers_to_transform=[1],
            num_vectors=40_000,
            save_only_topk_weights=True,
        ),
        change=train,
    ),
    peft_case(
        "vblora-bias",
        "vblora",
        lambda: config(target_modules=["q_proj", "lm_head"], bias="vblora_only"),
        change=train,
        bases=("qwen",),
        may_lack=("bias", "lm_head.base_layer.weight"),
    ),
]
