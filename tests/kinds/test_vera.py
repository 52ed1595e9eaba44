from __future__ import annotations

import pytest
import torch
from peft import VeraConfig
from peft.tuners.vera.model import _kaiming_init
from tests.kinds.folder import edit_config, edit_tensors, make, refusal

from turret_adapters.inspect import describe
from turret_adapters.kinds.vera import _draw


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def folder(lab, tmp_path):
    path = tmp_path / "adapter"
    make(lab, path, lambda: VeraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    return path


@pytest.mark.parametrize("key", [0, 7, (1 << 64) - 1])
def test_projections_are_drawn_as_peft_draws_them(key):
    ours, theirs = (torch.Generator().manual_seed(key) for _ in range(2))
    for size in ((256, 96), (300, 256)):
        assert torch.equal(_draw(size, ours), _kaiming_init(size, generator=theirs))


def test_projections_that_were_drawn_are_noted(lab, folder):
    edit_config(folder, save_projection=False)
    edit_tensors(folder, vera_A=None, vera_B=None)
    loaded = lab.load(folder)
    assert any("projection_prng_key 0" in note for note in loaded.notes)
    lab.unload(loaded)
    assert describe(folder)["refusal"] is None


def test_it_can_be_inspected_without_a_base(folder):
    assert describe(folder)["modules"]["q_proj"]["ranks"] == [4]


def test_projections_are_missing(lab, folder):
    edit_tensors(folder, vera_B=None)
    assert "missing" in refusal(lab, folder).why
    edit_config(folder, save_projection=False)
    assert "is stored" in refusal(lab, folder).why


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("r", 5, "contradicts the rank"),
        ("r", 5000, "rank 5000, and there are 1024"),
        ("save_projection", False, "is stored"),
        ("exclude_modules", ["q_proj"], "exclude_modules"),  # not a field of VeRA
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("bias", "lora_only", "bias"),
        ("target_modules", ["q_proj"], "does not include"),
        ("something_new", 7, "something_new"),
    ],
)
def test_settings_that_cannot_be_served(lab, folder, field, value, why):
    edit_config(folder, **{field: value})
    assert why in refusal(lab, folder).why


@pytest.mark.parametrize("key", [-1, 1 << 64, "0", None])
def test_a_key_that_torch_does_not_take(lab, folder, key):
    edit_config(folder, save_projection=False, projection_prng_key=key)
    edit_tensors(folder, vera_A=None, vera_B=None)
    assert "projection_prng_key" in refusal(lab, folder).why
