from dataclasses import replace
from pathlib import Path

import torch
from peft import BdLoraConfig, KasaConfig, LoraConfig
from peft.tuners.lora import variants
from peft.tuners.lora.layer import Linear, LoraVariant
from tests.kinds.case import Case, Reference, peft_case
from transformers import PreTrainedModel

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COPIES = ("embed_tokens.weight", "lm_head.weight", "base_layer.weight")  # of the base


def qalora(case: Case) -> Case:
    """PEFT pools on GPTQ bases alone; let it do the same on a plain one."""

    def pooling(self: Linear, *, config: LoraConfig, **_: object) -> LoraVariant:
        return variants.QALoraLinearVariant()

    def patched(folder: Path, base: PreTrainedModel) -> Reference:
        original = Linear.resolve_lora_variant
        Linear.resolve_lora_variant = pooling
        try:
            return case.make(folder, base)
        finally:
            Linear.resolve_lora_variant = original

    return replace(case, make=patched)


def exact_svd(case: Case) -> Case:
    """Let PEFT's SVD be exact: in float32 it is off by 3e-6, more than all the rest together."""
    svd = torch.linalg.svd

    def in_double(weight: torch.Tensor, **fields: bool) -> tuple[torch.Tensor, ...]:
        return tuple(part.float() for part in svd(weight.double(), **fields))

    def patched(folder: Path, base: PreTrainedModel) -> Reference:
        torch.linalg.svd = in_double
        try:
            return case.make(folder, base)
        finally:
            torch.linalg.svd = svd

    return replace(case, make=patched)


QALORA = peft_case(
    "lora-qalora",
    "lora",
    lambda: LoraConfig(
        r=4, use_qalora=True, qalora_group_size=8, target_modules=["q_proj", "down_proj"]
    ),
)

CASES = [
    peft_case(
        "lora", "lora", lambda: LoraConfig(r=4, target_modules=LINEARS), bases=("llama", "gemma")
    ),
    peft_case(
        "lora-bias",
        "lora",
        lambda: LoraConfig(r=3, target_modules=["q_proj", "o_proj"], bias="lora_only"),
        bases=("qwen",),
        may_lack=("bias",),
    ),
    peft_case(
        "lora-dora",
        "lora",
        lambda: LoraConfig(r=4, use_dora=True, target_modules=LINEARS),
        bases=("llama", "qwen"),  # with and without biases
    ),
    peft_case(
        "lora-dora-bias",
        "lora",
        lambda: LoraConfig(
            r=3, use_dora=True, use_rslora=True, target_modules=["q_proj", "o_proj"], bias="all"
        ),
        bases=("qwen",),
        may_lack=("bias",),
    ),
    peft_case(
        "lora-dora-embedding-and-head",
        "lora",
        lambda: LoraConfig(
            r=4, use_dora=True, target_modules=["embed_tokens", "lm_head", "v_proj"]
        ),
        std=0.05,
        bases=("llama",),
        may_lack=COPIES,
    ),
    peft_case(
        "lora-dora-tied-embedding",
        "lora",
        lambda: LoraConfig(r=4, use_dora=True, target_modules=["embed_tokens", "k_proj"]),
        std=0.05,
        bases=("tied", "gemma"),
        may_lack=COPIES,
    ),
    qalora(QALORA),
    peft_case(
        "lora-qalora-on-a-plain-base",
        "lora",
        lambda: LoraConfig(r=4, use_qalora=True, qalora_group_size=8, target_modules=["q_proj"]),
    ),
    peft_case(
        "lora-bdlora",
        "lora",
        lambda: LoraConfig(
            r=4,
            lora_alpha=3,
            target_modules=LINEARS,
            use_bdlora=BdLoraConfig(
                target_modules_bd_a=["o_proj", "down_proj"],
                target_modules_bd_b=["q_proj", "k_proj", "v_proj", "up_proj"],
                nblocks=2,
                match_strict=False,
            ),
        ),
    ),
    exact_svd(
        peft_case(
            "lora-kasa",
            "lora",
            lambda: LoraConfig(r=4, kasa_config=KasaConfig(), target_modules=LINEARS),
        )
    ),
    exact_svd(
        peft_case(
            "lora-pissa",
            "lora",
            lambda: LoraConfig(
                r=4,
                lora_alpha=6,
                init_lora_weights="pissa",
                target_modules=[*LINEARS, "embed_tokens"],
            ),
            may_lack=COPIES,
            bases=("llama", "qwen"),
        )
    ),
    peft_case(
        "lora-olora",
        "lora",
        lambda: LoraConfig(
            r=4,
            lora_alpha=2,
            init_lora_weights="olora",
            target_modules=LINEARS,
            rank_pattern={"q_proj": 7},
        ),
    ),
    exact_svd(
        peft_case(
            "lora-pissa-dora",
            "lora",
            lambda: LoraConfig(
                r=3, use_dora=True, init_lora_weights="pissa", target_modules=["v_proj", "o_proj"]
            ),
            bases=("qwen",),
        )
    ),
    peft_case(
        "lora-norms",
        "lora",
        lambda: LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["norm"]),
        bases=("llama", "tied"),
    ),
    peft_case(
        "lora-one-norm",
        "lora",
        lambda: LoraConfig(
            r=3, target_modules=["q_proj"], modules_to_save=["post_attention_layernorm"]
        ),
    ),
]
