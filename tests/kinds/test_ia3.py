import json

import pytest
import torch
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file

from turret_adapters.errors import AdapterMalformed, AdapterUnsupported
from turret_adapters.inspect import describe


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def save(lab, tmp_path):
    def save(targets, feedforward, std=0.1):
        config = IA3Config(target_modules=targets, feedforward_modules=feedforward)
        model = get_peft_model(lab.model(), config)
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.data += torch.randn_like(parameter) * std
        model.save_pretrained(str(tmp_path))
        return tmp_path

    return save


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (["k_proj"], "'k_proj'"),
        (["q_proj", "k_proj", "v_proj"], "'q_proj', 'k_proj', 'v_proj'"),  # other vectors
        (["up_proj", "gate_proj"], "'gate_proj', 'up_proj'"),
    ],
)
def test_inputs_that_others_read_too(lab, save, targets, named):
    with pytest.raises(AdapterUnsupported, match=f"the input of {named} in layer 0"):
        lab.load(save(targets, targets))


def test_one_input_for_only_some_of_its_readers(lab, save):
    """The vectors are equal, but v_proj has none: it would read the rescaled input, too."""
    with pytest.raises(AdapterUnsupported, match="'q_proj', 'k_proj', 'v_proj' read one input"):
        lab.load(save(["q_proj", "k_proj"], ["q_proj", "k_proj"], std=0.0))


def test_feedforward_modules_need_no_dot(lab, save):
    """PEFT matches the end of the path, not the last name."""
    folder = save(["down_proj"], ["down_proj"])
    edit(folder, feedforward_modules=["wn_proj"])
    assert lab.load(folder).targets == ("mlp_inner",)


def test_null_feedforward_modules(lab, save):
    folder = save(["down_proj"], ["down_proj"])
    edit(folder, feedforward_modules=None)
    with pytest.raises(AdapterMalformed, match="feedforward_modules is null"):
        lab.load(folder)


def test_the_config_decides_what_is_scaled_not_the_shape(lab, save):
    folder = save(["down_proj"], ["down_proj"])
    edit(folder, feedforward_modules=[])
    with pytest.raises(AdapterUnsupported, match=r"shape \[1, 96\], expected \[64, 1\]"):
        lab.load(folder)


def test_full_copies_of_modules(lab, save):
    folder = save(["k_proj"], [])
    edit(folder, modules_to_save=["lm_head"])
    with pytest.raises(AdapterUnsupported, match="modules_to_save"):
        lab.load(folder)


def test_the_embedding_has_no_ia3(lab, save):
    folder = save(["k_proj"], [])
    path = folder / "adapter_model.safetensors"
    stranger = {"base_model.model.model.embed_tokens.ia3_l": torch.ones(64, 1)}
    save_file(load_file(path) | stranger, path)
    with pytest.raises(AdapterUnsupported, match="embed_tokens"):
        lab.load(folder)


def test_the_order_of_a_set_does_not_count(lab, save):
    """PEFT orders its sets anew with every save."""
    targets = ["k_proj", "o_proj", "down_proj"]
    first = lab.load(save(targets, targets[1:])).digest
    folder = save(targets, targets[1:], std=0.0)
    digests = []
    for names in (targets[1:], targets[:0:-1]):
        edit(folder, feedforward_modules=names)
        digests.append(lab.load(folder).digest)
    assert digests[0] == digests[1] != first


def test_inspection(save):
    report = describe(save(["k_proj", "v_proj", "down_proj"], ["down_proj"]))
    assert report["refusal"] is None
    assert list(report["modules"]) == ["k_proj", "v_proj", "mlp_inner"]
    assert report["num_parameters"] == 3 * (32 + 32 + 96)
