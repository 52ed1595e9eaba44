"""Two processes that share a quantised base compute what one does, and what its weights say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tests.kinds.case import peft_case
from tests.kinds.lab import PROMPTS, SIZES, Answer, Lab, assert_same, base_reference
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from turret_adapters.spec import LINEARS, Site
from turret_kernels.quantized import Method
from turret_server.engine.messages import AdapterUse
from turret_server.models.shape import stored_shape

# Half of the inputs of o and down are whole groups of int4, and half of the outputs of k sixteens.
FIT = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
CASES = [
    peft_case("lora", "lora", lambda: LoraConfig(r=4, target_modules=list(map(str, LINEARS)))),
    peft_case(  # its norms are those of the base as it is rounded
        "dora",
        "lora",
        lambda: LoraConfig(r=4, target_modules=["q_proj", "o_proj", "up_proj"], use_dora=True),
    ),
]


def random_base(folder: Path) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(**SIZES | FIT, attention_bias=True, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(folder)
    return folder


def dequantised(base: Path, method: Method, folder: Path) -> PreTrainedModel:
    """The base as it is rounded, in a folder of its own."""
    shape = stored_shape(base, torch.float32, method)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for layer, block in enumerate(model.model.layers):
        for module in LINEARS:
            parent = block.mlp if hasattr(block.mlp, module) else block.self_attn
            getattr(parent, module).weight.data.copy_(shape.weight(Site(layer, module)))
    model.save_pretrained(folder)
    return model.eval()


def answers(base: Path, adapters: Sequence[Path], **settings: object) -> list[Answer]:
    """What a batch of all prompts gets from the base, from each adapter, and from a stack."""
    sizes = {"kv_cache_bytes": 8 << 20, "max_step_tokens": 24}
    lab = Lab(base, base.name, **sizes, **settings)
    try:
        uses = [AdapterUse(lab.load(adapter).digest) for adapter in adapters]
        recipes = [(), *((use,) for use in uses), tuple(uses)]
        return lab.run([lab.ask(prompt, *recipe) for prompt in PROMPTS for recipe in recipes])
    finally:
        lab.close()


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_a_mixed_batch_is_that_of_one_process_and_of_the_dequantised_base(tmp_path, method):
    base, rounded = random_base(tmp_path / "base"), tmp_path / "rounded"
    references = [base_reference(dequantised(base, method, rounded))]
    for case in CASES:
        model = AutoModelForCausalLM.from_pretrained(rounded, dtype=torch.float32).eval()
        references.append(case.make(tmp_path / case.name, model))
    adapters = [tmp_path / case.name for case in CASES]

    split = answers(base, adapters, quantization=method, tensor_parallel=2)
    for i, answer in enumerate(split):
        recipe = i % (len(references) + 1)
        if recipe < len(references):  # PEFT has no such stacks
            assert_same(answer, references[recipe])
    for others in (
        answers(base, adapters, quantization=method),
        answers(rounded, adapters, tensor_parallel=2),
    ):
        for one, two in zip(split, others, strict=True):
            assert two.tokens == one.tokens
            for left, right in zip(one.entries, two.entries, strict=True):
                # Sums of float32 in another order, at logits of about 10.
                assert right.logprob == pytest.approx(left.logprob, abs=2e-5)


def test_adapters_act_in_bf16_on_quantised_shards(tmp_path):
    base = random_base(tmp_path / "base")
    for case in CASES:
        case.make(tmp_path / case.name, AutoModelForCausalLM.from_pretrained(base).float())
    adapters = [tmp_path / case.name for case in CASES]
    options = {"quantization": "int8", "dtype": "bfloat16"}
    whole = answers(base, adapters, **options)
    split = answers(base, adapters, **options, tensor_parallel=2)
    for one, two in zip(whole, split, strict=True):
        prompt = len(one.prompt) - 1  # what follows may be other tokens
        for left, right in zip(one.entries[:prompt], two.entries[:prompt], strict=True):
            # Partial sums are rounded to eight bits, and so are logits of about 10.
            assert right.logprob == pytest.approx(left.logprob, abs=0.3)
