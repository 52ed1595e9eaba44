from dataclasses import replace

import pytest
import torch
from peft import LNTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from turret_adapters.errors import AdapterUnsupported
from turret_adapters.files import AdapterFiles
from turret_adapters.inspect import describe
from turret_adapters.kinds.ln_tuning import KIND

PREFIX = "base_model.model.model.layers.1"


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def folder(lab, tmp_path):
    model = get_peft_model(lab.model(), LNTuningConfig(target_modules=["input_layernorm", "norm"]))
    for name, parameter in model.named_parameters():
        if "ln_tuning_layers" in name:
            parameter.data += 0.1
    model.save_pretrained(str(tmp_path))
    return tmp_path


def compile_over(folder, shape, gain):
    """Against a base in which every norm has this gain."""
    with AdapterFiles.open(folder) as files:
        return KIND.compile(files, replace(shape, gain=lambda site: gain))


def store(folder, **tensors):
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {f"{PREFIX}.{k}.weight": t for k, t in tensors.items()}, path)


def test_a_gain_of_zero_cannot_be_scaled(lab, folder):
    gain = torch.ones(64)
    gain[3] = 0
    with pytest.raises(AdapterUnsupported, match="at feature 3, where the base's gain is 0"):
        compile_over(folder, lab.engine.decoder.shape, gain)


def test_zero_stays_zero(lab, folder):
    gain = torch.ones(64)
    gain[3] = 0
    path = folder / "adapter_model.safetensors"
    save_file({k: torch.full_like(t, 2) * gain for k, t in load_file(path).items()}, path)
    for component in compile_over(folder, lab.engine.decoder.shape, gain).components:
        assert component.vector[3] == 1
        assert component.vector[:3].tolist() == [2, 2, 2]


@pytest.mark.parametrize("norm", ["q_norm", "k_norm"])
def test_norms_inside_attention(lab, folder, norm):
    store(folder, **{f"self_attn.{norm}.ln_tuning_layers": torch.ones(16)})
    with pytest.raises(AdapterUnsupported, match="norms inside attention"):
        lab.load(folder)


def test_linears_that_were_copied(lab, folder):
    """PEFT copies whatever target_modules names."""
    store(folder, **{"mlp.up_proj.ln_tuning_layers": torch.ones(96, 64)})
    with pytest.raises(AdapterUnsupported, match="up_proj"):
        lab.load(folder)


def test_inspection_says_that_it_needs_the_base(folder):
    assert "no base is at hand" in describe(folder)["refusal"]["why"]
