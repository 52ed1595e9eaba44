import pytest
import torch
from safetensors.torch import load_file, save_file

from turret_adapters.errors import AdapterMalformed, AdapterUnsupported
from turret_adapters.inspect import describe


def key(layer, name, module="mlp.down_proj"):
    return f"base_model.model.layers.{layer}.{module}.delta_vector.{name}"


BOTH = {
    key(0, "activation_scaling"): torch.ones(1, 64),
    key(0, "activation_bias"): torch.ones(1, 64),
}


@pytest.fixture
def lab(labs):
    return labs("llama")


def test_the_published_pickle_is_refused_with_the_way_to_convert_it(lab, tmp_path):
    torch.save(BOTH, tmp_path / "delta_vector.pth")
    with pytest.raises(AdapterUnsupported, match=r"'delta_vector\.pth' is a pickle") as caught:
        lab.load(tmp_path)
    # What it says works.
    command = caught.value.fix.partition('python -c "')[2].removesuffix('"')
    command = command.replace("'delta", f"'{tmp_path}/delta")
    exec(command, {})
    assert load_file(tmp_path / "delta_vector.safetensors").keys() == BOTH.keys()
    (tmp_path / "delta_vector.pth").unlink()
    assert lab.load(tmp_path).primitives == ("Offset", "Scale")


@pytest.mark.parametrize(
    ("tensors", "error", "why"),
    [
        (BOTH | {key(1, "activation_bias"): torch.ones(1, 64)}, AdapterMalformed, "no scaling"),
        (BOTH | {key(0, "activation_ln.weight"): torch.ones(64)}, AdapterUnsupported, "normalises"),
        (BOTH | {key(0, "other"): torch.ones(64)}, AdapterUnsupported, "other"),
        (BOTH | {"model.embed_tokens.weight": torch.ones(64)}, AdapterUnsupported, "embed_tokens"),
        ({key(0, "activation_bias"): torch.ones(64)}, AdapterUnsupported, r"expected \[1, 64\]"),
        ({}, AdapterUnsupported, "no module is matched"),
    ],
)
def test_refusals(lab, tmp_path, tensors, error, why):
    save_file(tensors, tmp_path / "delta_vector.safetensors")
    with pytest.raises(error, match=why):
        lab.load(tmp_path)


def test_inspection(tmp_path):
    save_file(BOTH, tmp_path / "delta_vector.safetensors")
    report = describe(tmp_path)
    assert report["refusal"] is None
    assert report["num_parameters"] == 128
