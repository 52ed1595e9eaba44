from __future__ import annotations

import json

import pytest
import torch
from peft import LoKrConfig
from peft.tuners.lokr.layer import factorization
from safetensors.torch import save_file
from tests.kinds.folder import CONFIG, WEIGHTS, edit_config, make, refusal, tensors_of

from turret_adapters.errors import AdapterUnsupported
from turret_adapters.files import AdapterFiles
from turret_adapters.inspect import describe
from turret_adapters.kinds.lokr import KIND, split_size
from turret_adapters.spec import ModelShape, Module


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def folder(lab, tmp_path):
    path = tmp_path / "adapter"
    make(lab, path, lambda: LoKrConfig(r=3, target_modules=["q_proj"]))
    return path


@pytest.mark.parametrize("factor", [-1, 0, 1, 2, 3, 5, 8, 16, 31, 64, 1000])
def test_sizes_are_split_as_peft_splits_them(factor):
    sizes = [*range(1, 300), 2048, 4096, 11008, 14336]
    assert [split_size(n, factor) for n in sizes] == [factorization(n, factor) for n in sizes]


def test_a_small_file_cannot_name_a_huge_branch(tmp_path):
    """Two full 128 x 128 matrices, 128 KiB, are a branch of rank 16384 and 2 GiB."""
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lokr_w"
    save_file({f"{prefix}{i}": torch.ones(128, 128) for i in (1, 2)}, tmp_path / WEIGHTS)
    config = {"peft_type": "LOKR", "r": 64, "target_modules": ["q_proj"]}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    shape = ModelShape(1, {Module.Q: (128 * 128, 128 * 128)})
    with AdapterFiles.open(tmp_path) as files, pytest.raises(AdapterUnsupported) as caught:
        KIND.compile(files, shape)
    assert "rank 16384" in caught.value.why
    assert "--adapter-rank-rows 16384" in caught.value.fix
    assert "rank 16384" in describe(tmp_path)["refusal"]["why"]


def test_a_large_rank_is_noted(lab, tmp_path):
    make(lab, tmp_path / "a", lambda: LoKrConfig(r=48, target_modules=["gate_proj"]))
    loaded = lab.load(tmp_path / "a")
    assert loaded.rank == 64
    assert not loaded.notes
    lab.unload(loaded)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lokr_w"
    tensors = {f"{prefix}{i}": torch.ones(16, 16) for i in (1, 2)}
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text('{"peft_type": "LOKR", "r": 64, "target_modules": ["q_proj"]}')
    with AdapterFiles.open(tmp_path) as files:
        program = KIND.compile(files, ModelShape(1, {Module.Q: (256, 256)}))
    assert program.rank == 256
    assert any("rank 256" in note for note in program.notes)


def test_a_convolution_core_is_refused(lab, folder):
    key = "base_model.model.model.layers.0.self_attn.q_proj.lokr_t2"
    save_file(tensors_of(folder) | {key: torch.ones(3, 3, 1, 1)}, folder / WEIGHTS)
    assert "Tucker" in refusal(lab, folder).why


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("alpha", 0, "do nothing"),
        ("r", 2, "contradicts the rank"),
        ("r", 4, "q_proj has no"),  # W2 would be stored in full
        ("decompose_both", True, "q_proj has no"),
        ("decompose_factor", 4, "q_proj"),
        ("decompose_factor", "4", "not an integer"),
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("something_new", 7, "something_new"),
    ],
)
def test_settings_that_contradict_the_tensors(lab, folder, field, value, why):
    edit_config(folder, **{field: value})
    assert why in refusal(lab, folder).why
