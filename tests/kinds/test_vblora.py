from __future__ import annotations

import pytest
import torch
from peft import VBLoRAConfig
from tests.kinds.cases.vblora import train
from tests.kinds.folder import edit_config, edit_tensors, make, refusal, tensors_of
from tests.kinds.lab import PROMPTS, assert_same

from turret_adapters.inspect import describe
from turret_server.engine.messages import AdapterUse

Q = "layers.1.self_attn.q_proj.vblora_logits_A_topk_"


def config(**fields):
    fields = {"r": 3, "num_vectors": 20, "vector_length": 16, "topk": 2, **fields}
    return VBLoRAConfig(target_modules=["q_proj"], save_only_topk_weights=True, **fields)


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def folder(lab, tmp_path):
    path = tmp_path / "adapter"
    make(lab, path, config, change=train)
    return path


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [({"topk": 1}, torch.uint8), ({"num_vectors": 300}, torch.int16)],
    ids=["one vector and no weight", "wider indices"],
)
def test_what_is_stored_depends_on_the_config(lab, tmp_path, fields, dtype):
    reference = make(lab, tmp_path / "a", lambda: config(**fields), change=train)
    stored = tensors_of(tmp_path / "a")
    assert {t.dtype for key, t in stored.items() if "indices" in key} == {dtype}
    loaded = lab.load(tmp_path / "a")
    (answer,) = lab.run([lab.ask(PROMPTS[0], AdapterUse(loaded.digest))])
    assert_same(answer, reference)
    lab.unload(loaded)


def test_it_can_be_inspected_without_a_base(folder):
    assert describe(folder)["modules"]["q_proj"]["ranks"] == [3]


@pytest.mark.parametrize(
    ("value", "why"), [((0, 20), "outside the vector bank"), ((5, 5), "twice")]
)
def test_indices_are_checked(lab, folder, value, why):
    indices = torch.tensor(value, dtype=torch.uint8).expand(3, 4, 2)
    edit_tensors(folder, **{f"{Q}indices": indices})
    assert why in refusal(lab, folder).why


@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_weights_are_checked(lab, folder, value):
    edit_tensors(folder, **{f"{Q}weights": torch.full((3, 4, 1), value)})
    assert "0 to 1" in refusal(lab, folder).why


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("save_only_topk_weights", False, "missing"),
        ("vector_length", 48, "shape"),
        ("num_vectors", 21, "shape"),
        ("num_vectors", 1, "topk is 2"),
        ("topk", 3, "shape"),
        ("r", 2, "shape"),
        ("bias", "lora_only", "bias"),
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("something_new", 7, "something_new"),
    ],
)
def test_settings_that_contradict_the_tensors(lab, folder, field, value, why):
    edit_config(folder, **{field: value})
    assert why in refusal(lab, folder).why


def test_a_vector_that_does_not_divide_the_sizes(lab, folder):
    edit_config(folder, vector_length=24)
    edit_tensors(folder, vblora_vector_bank=torch.ones(20, 24))
    assert "divides not both" in refusal(lab, folder).why
