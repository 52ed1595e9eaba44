import torch
from peft import BdLoraConfig, KasaConfig, LoraConfig
from peft.tuners.lora import variants
from peft.tuners.lora.layer import Linear
from tests.kinds.case import Case, Make, Reference, peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COPIES = ("embed_tokens.weight", "lm_head.weight", "base_layer.weight")  # of the base


def qalora(make: Make) -> Make:
    """PEFT pools on GPTQ bases alone; let it do the same on a plain one."""

    def pooling(self: Linear, *, config: LoraConfig, **_: object) -> variants.LoraVariant:
        return variants.QALoraLinearVariant()

    def patched(folder, base) -> Reference:
        original = Linear.resolve_lora_variant
        Linear.resolve_lora_variant = pooling
        try:
            return make(folder, base)
        finally:
            Linear.resolve_lora_variant = original

    return patched


def noisy(std: float, **stds: float):
    """Noise of another size at the parameters whose names contain the keys of `stds`."""

    def change(model):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                size = next((s for part, s in stds.items() if part in name), std)
                parameter.data += torch.randn_like(parameter) * size

    return change


QALORA = peft_case(
    "lora-qalora",
    "lora",
    lambda: LoraConfig(
        r=4, use_qalora=True, qalora_group_size=8, target_modules=["q_proj", "down_proj"]
    ),
)

CASES = [
    peft_case("lora", "lora", lambda: LoraConfig(r=4, target_modules=LINEARS), bases=("llama",)),
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
        change=noisy(0.05),
        bases=("llama",),
        may_lack=COPIES,
    ),
    peft_case(
        "lora-dora-tied-embedding",
        "lora",
        lambda: LoraConfig(r=4, use_dora=True, target_modules=["embed_tokens", "k_proj"]),
        change=noisy(0.05),
        bases=("tied",),
        may_lack=COPIES,
    ),
    Case("lora-qalora", "lora", qalora(QALORA.make)),
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
    peft_case(
        "lora-kasa",
        "lora",
        lambda: LoraConfig(r=4, kasa_config=KasaConfig(), target_modules=LINEARS),
    ),
    peft_case(
        "lora-pissa",
        "lora",
        lambda: LoraConfig(
            r=4, lora_alpha=6, init_lora_weights="pissa", target_modules=[*LINEARS, "embed_tokens"]
        ),
        may_lack=COPIES,
        bases=("llama", "qwen"),
    ),
    peft_case(
        "lora-olora",
        "lora",
        lambda: LoraConfig(
            r=4, lora_alpha=2, init_lora_weights="olora", target_modules=LINEARS, rank_pattern={"q_proj": 7}
        ),
    ),
    peft_case(
        "lora-pissa-dora",
        "lora",
        lambda: LoraConfig(
            r=3, use_dora=True, init_lora_weights="pissa", target_modules=["v_proj", "o_proj"]
        ),
        bases=("qwen",),
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
