"""Eight LoRA adapters and the base in one batch, against transformers and PEFT one at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, PreTrainedModel

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.files import AdapterFiles
from turret_adapters.kinds.lora import KIND
from turret_adapters.plan import RowUse, StepPlan
from turret_server.models.decoder import Decoder

CPU = torch.device("cpu")
EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: list[dict[str, Any]] = [
    {"r": 8, "target_modules": EVERY_LINEAR},
    {"r": 3, "lora_alpha": 24, "target_modules": ["q_proj", "v_proj"]},
    {"r": 16, "use_rslora": True, "target_modules": EVERY_LINEAR},
    {"r": 4, "target_modules": ["gate_proj", "down_proj"], "layers_to_transform": [1]},
    {
        "r": 5,
        "target_modules": EVERY_LINEAR,
        "rank_pattern": {"k_proj": 2, "layers.0.mlp.up_proj": 9},
        "alpha_pattern": {"o_proj": 40},
    },
    {"r": 2, "target_modules": ["embed_tokens", "k_proj"]},
    {"r": 6, "target_modules": ["lm_head", "up_proj"]},
    {"r": 4, "target_modules": EVERY_LINEAR, "bias": "lora_only"},
]
BASE = len(ADAPTERS)
# Which adapter each sequence runs; two share adapter 0, two the base.
MODELS = [0, 1, 2, BASE, 3, 4, 5, 6, 7, 0, BASE]


def _save_adapters(model: PreTrainedModel, folder: Path) -> list[Path]:
    """Random adapters as PEFT writes them; biases, where trained, drawn anew."""
    paths = []
    for number, options in enumerate(ADAPTERS):
        torch.manual_seed(number)
        config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
        adapted = get_peft_model(copy.deepcopy(model), config)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and name.endswith("bias"):
                parameter.data.normal_()
        paths.append(folder / str(number))
        adapted.save_pretrained(paths[-1])
    return paths


@pytest.fixture
def adapted(save_tiny, tmp_path):
    """(decoder, its banks with the adapters in slots 0 to 7, a PEFT model per number)."""
    folder, model = save_tiny(LlamaConfig, attention_bias=True)
    paths = _save_adapters(model, tmp_path)
    decoder = Decoder.load(folder, torch.float32, CPU, max_model_len=64)
    banks = DeviceBanks(decoder.shape, len(ADAPTERS), 64, CPU, torch.float32, decoder.bias)
    for slot, path in enumerate(paths):
        with AdapterFiles.open(path) as files:
            assert banks.put(slot, KIND.compile(files, decoder.shape).components)

    def reference(number: int) -> torch.nn.Module:
        if number == BASE:
            return model
        return PeftModel.from_pretrained(copy.deepcopy(model), str(paths[number])).eval()

    return decoder, banks, [reference(number) for number in range(BASE + 1)]


@pytest.mark.parametrize("share", [1.0, 0.4], ids=["every position", "some positions"])
def test_mixed_batch_equals_peft_one_at_a_time(adapted, ragged_logits, share):
    decoder, banks, references = adapted

    def planner(spans, logit_rows):
        uses = [
            RowUse(first, count, (MODELS[i],), (1.0,))
            for i, first, count in spans
            if MODELS[i] != BASE
        ]
        return StepPlan(banks, uses, logit_rows)

    generator = torch.Generator().manual_seed(1)
    sequences = [
        torch.randint(128, (5 + 3 * i,), generator=generator).tolist() for i in range(len(MODELS))
    ]
    results = ragged_logits(decoder, sequences, planner, share=share)
    for number, sequence, logits in zip(MODELS, sequences, results, strict=True):
        with torch.inference_mode():
            expected = references[number](torch.tensor([sequence])).logits[0]
        asked = ~logits.isnan().any(-1)
        assert asked.any()
        torch.testing.assert_close(logits[asked], expected[asked], atol=1e-4, rtol=0)


def test_the_adapters_differ_from_the_base(adapted):
    """So that the parity above means something."""
    *_, references = adapted
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        base = references[BASE](tokens).logits
        for reference in references[:BASE]:
            assert (reference(tokens).logits - base).abs().max() > 0.1
