from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoHaConfig
from tests.kinds.folder import edit_config, edit_tensors, make, refusal

from turret_adapters.errors import AdapterUnsupported
from turret_adapters.files import AdapterFiles
from turret_adapters.kinds.loha import KIND


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def folder(lab, tmp_path):
    path = tmp_path / "adapter"
    make(lab, path, lambda: LoHaConfig(r=3, target_modules=["q_proj"]))
    return path


def test_its_rank_is_squared_and_at_most_that_of_the_weight(lab, tmp_path):
    make(lab, tmp_path / "a", lambda: LoHaConfig(r=3, target_modules=["q_proj"]))
    make(lab, tmp_path / "b", lambda: LoHaConfig(r=30, target_modules=["q_proj"]))
    loaded = [lab.load(tmp_path / name) for name in "ab"]
    assert [adapter.rank for adapter in loaded] == [9, 64]
    for adapter in loaded:
        lab.unload(adapter)


def test_a_rank_beyond_the_rows_is_refused_before_it_is_multiplied_out(lab, folder):
    shape = replace(lab.engine.decoder.shape, max_rank=8)
    with AdapterFiles.open(folder) as files, pytest.raises(AdapterUnsupported) as caught:
        KIND.compile(files, shape)
    assert "rank 9, and there are 8 rank rows" in caught.value.why
    assert "--adapter-rank-rows 9" in caught.value.fix


def test_values_whose_product_overflows(lab, folder):
    key = "model.layers.1.self_attn.q_proj.hada_w{}_b"
    edit_tensors(folder, **{key.format(i): torch.full((3, 64), 1e30) for i in (1, 2)})
    assert "overflows" in refusal(lab, folder).why


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("alpha", 0, "do nothing"),
        ("alpha_pattern", {"q_proj": 0}, "do nothing"),
        ("r", 4, "contradicts the rank"),
        ("rank_pattern", {"q_proj": 2}, "contradicts the rank"),
        ("rank_pattern", {"q_proj": "2"}, "not an integer"),
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("target_modules", ["q_proj", "v_proj"], "missing"),
        ("something_new", 7, "something_new"),
    ],
)
def test_settings_that_cannot_be_served(lab, folder, field, value, why):
    edit_config(folder, **{field: value})
    assert why in refusal(lab, folder).why
