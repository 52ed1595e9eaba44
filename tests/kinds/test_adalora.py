from __future__ import annotations

import pytest
from peft import AdaLoraConfig
from tests.kinds.folder import edit_config, make, refusal, tensors_of
from tests.kinds.lab import PROMPTS, assert_same
from torch import randn_like

from turret_server.engine.messages import AdapterUse

Q = "model.layers.{}.self_attn.q_proj.lora_E"


def config():
    return AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, lora_alpha=6, target_modules=["q_proj"]
    )


def prune(kept):
    """Give q of each layer its mask."""

    def change(model):
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.data += randn_like(parameter) * 0.3
        pattern = {f"{Q.format(i)}.default": mask for i, mask in enumerate(kept)}
        model.peft_config["default"].rank_pattern = pattern

    return change


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def folder(lab, tmp_path):
    path = tmp_path / "adapter"
    make(lab, path, config, std=0.3)
    return path


def test_a_module_may_be_pruned_to_nothing(lab, tmp_path):
    masks = [[False] * 4, [True, False, False, True], [True] * 4]
    reference = make(lab, tmp_path / "a", config, change=prune(masks))
    assert tensors_of(tmp_path / "a")[f"base_model.model.{Q.format(0)}"].shape == (0, 1)
    loaded = lab.load(tmp_path / "a")
    (answer,) = lab.run([lab.ask(PROMPTS[0], AdapterUse(loaded.digest))])
    assert_same(answer, reference)
    lab.unload(loaded)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ({Q.format(0): [True, False, False, True]}, "contradicts the rank"),
        ({Q.format(0): [1, 1, 1, 1]}, "booleans"),
        ({Q.format(0): [True] * 5}, "init_r = 4"),
        ({Q.format(0): 4}, "booleans"),
        ({"vision.lora_E": [True] * 4}, "rank_pattern names 'vision.lora_E'"),
        ({Q.format(0).replace("_E", "_A"): [True] * 4}, "rank_pattern names"),
        ({Q.format(0).replace("q_", "k_"): [True] * 4}, "which is not adapted"),
        ({Q.format(0): [True] * 4, Q.format(0) + ".default": [True] * 4}, "rank_pattern names"),
    ],
)
def test_a_rank_pattern_that_contradicts_the_tensors(lab, folder, pattern, why):
    edit_config(folder, rank_pattern=pattern)
    assert why in refusal(lab, folder).why


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lora_alpha", 0),
        ("lora_alpha", -2),
        ("init_r", 5),
        ("modules_to_save", ["lm_head"]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("use_dora", True),
        ("trainable_token_indices", [3]),
        ("something_new", 7),
    ],
)
def test_settings_that_cannot_be_served(lab, folder, field, value):
    edit_config(folder, **{field: value})
    assert field.removeprefix("init_") in str(refusal(lab, folder))
