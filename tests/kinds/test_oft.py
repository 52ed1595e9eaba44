"""What OFT refuses, and weights of its rotations."""

from __future__ import annotations

import json

import pytest
import torch
from peft import OFTConfig, PeftModel
from tests.kinds.case import peft_case
from tests.kinds.lab import PROMPTS, assert_same, base_reference

from turret_adapters.errors import AdapterError
from turret_adapters.kinds.oft import _change, _divisor
from turret_server.engine.messages import AdapterUse


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def folder(lab, tmp_path):
    config = lambda: OFTConfig(oft_block_size=8, target_modules=["q_proj"])  # noqa: E731
    peft_case("oft", "oft", config).make(tmp_path / "oft", lab.model())
    return tmp_path / "oft"


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"coft": True}, "how often is not stored"),
        ({"use_cayley_neumann": ...}, "use_cayley_neumann"),
        ({"num_cayley_neumann_terms": 0}, "num_cayley_neumann_terms"),
        ({"r": 4}, "exactly one"),
        ({"oft_block_size": 0}, "exactly one"),
        ({"oft_block_size": 16}, "oft_R"),
        ({"block_share": True}, "oft_R"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"new_option": 1}, "new_option"),
    ],
)
def test_refused(lab, folder, fields, why):
    edit(folder, **fields)
    with pytest.raises(AdapterError) as caught:
        lab.load(folder)
    assert why in str(caught.value)
    assert caught.value.fix


def test_the_head_is_refused(lab, tmp_path):
    config = lambda: OFTConfig(oft_block_size=8, target_modules=["lm_head"])  # noqa: E731
    peft_case("oft", "oft", config).make(tmp_path / "oft", lab.model())
    with pytest.raises(AdapterError, match="what the head reads"):
        lab.load(tmp_path / "oft")


def test_a_weight_lies_on_the_line_to_the_base(lab, folder):
    """Of the weights that PEFT merges."""
    loaded = lab.load(folder)
    base = lab.model()
    merged = PeftModel.from_pretrained(lab.model(), str(folder)).merge_and_unload().state_dict()
    for weight in (0.5, -1.0, 1.0):
        model = lab.model()
        with torch.no_grad():
            for name, value in model.named_parameters():
                value += weight * (merged[name] - value)
        (answer,) = lab.run([lab.ask(PROMPTS[0], AdapterUse(loaded.digest, weight))])
        assert_same(answer, base_reference(model))
    assert any(not torch.equal(merged[name], value) for name, value in base.named_parameters())
    lab.unload(loaded)


def test_the_transform_is_orthogonal_and_the_series_nearly():
    skew = torch.randn(3, 8, 8) / 50
    skew = skew - skew.mT
    exact = _change(skew, 0) + torch.eye(8)
    torch.testing.assert_close(exact @ exact.mT, torch.eye(8).expand(3, -1, -1))
    # PEFT's sign: the series is of the inverse rotation.
    torch.testing.assert_close(_change(-skew, 8) + torch.eye(8), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "wanted", "found"),
    [(64, 8, 8), (64, 5, 4), (64, 100, 64), (576, 31, 32), (7, 4, 1), (7, 5, 7)],
)
def test_block_sizes_are_adjusted_as_peft_adjusts_them(size, wanted, found):
    assert _divisor(size, wanted) == found
