"""The adapters that the comparison with other servers loads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

SCRIPT = Path(__file__).parents[2] / "bench" / "peers" / "make_adapters.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_adapters", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with grouped-query attention, so that every linear has its own shape."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_peft_loads_them_and_each_changes_the_output(
    script: ModuleType, model_folder: Path, tmp_path: Path
) -> None:
    paths = script.make_adapters(model_folder, tmp_path, 4)
    token_ids = torch.arange(10)[None]
    outputs = [LlamaForCausalLM.from_pretrained(model_folder)(token_ids).logits]
    for path in paths.values():
        base = LlamaForCausalLM.from_pretrained(model_folder)
        outputs.append(PeftModel.from_pretrained(base, path)(token_ids).logits)
    for one in range(5):
        for other in range(one):
            assert not torch.allclose(outputs[one], outputs[other], atol=1e-4), (one, other)


def test_ranks_come_in_turn_with_twice_the_alpha(
    script: ModuleType, model_folder: Path, tmp_path: Path
) -> None:
    paths = script.make_adapters(model_folder, tmp_path, 5)
    configs = [json.loads((p / "adapter_config.json").read_text()) for p in paths.values()]
    assert [config["r"] for config in configs] == [8, 16, 16, 32, 8]
    assert all(config["lora_alpha"] == 2 * config["r"] for config in configs)
    assert len(load_file(paths["a0"] / "adapter_model.safetensors")) == 2 * 7 * 2


def test_same_seed_gives_the_same_bytes(
    script: ModuleType, model_folder: Path, tmp_path: Path
) -> None:
    one, two = (script.make_adapters(model_folder, tmp_path / name, 1)["a0"] for name in "xy")
    name = "adapter_model.safetensors"
    assert (one / name).read_bytes() == (two / name).read_bytes()
