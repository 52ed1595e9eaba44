import json

import pytest
from peft import BeftConfig, RoadConfig, get_peft_model

from turret_adapters.errors import AdapterError, AdapterMalformed, AdapterUnsupported
from turret_adapters.inspect import describe


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def folder(lab, tmp_path):
    config = RoadConfig(variant="road_2", group_size=8, target_modules=["q_proj"])
    get_peft_model(lab.model(), config).save_pretrained(str(tmp_path))
    return tmp_path


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "error", "why"),
    [
        ({"group_size": 7}, AdapterMalformed, "group_size is 7"),
        ({"group_size": 0}, AdapterMalformed, "group_size"),
        ({"group_size": 48}, AdapterUnsupported, "does not divide the 64 outputs"),
        ({"variant": "road_3"}, AdapterMalformed, "variant"),
        ({"variant": "road_1"}, AdapterUnsupported, "shape"),
        ({"exclude_modules": ["v_proj"]}, AdapterUnsupported, "exclude_modules"),  # PEFT ignores it
        ({"modules_to_save": ["lm_head"]}, AdapterUnsupported, "modules_to_save"),
    ],
)
def test_refusals(lab, folder, fields, error, why):
    edit(folder, **fields)
    with pytest.raises(error, match=why):
        lab.load(folder)


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_inspection(lab, tmp_path, variant):
    config = RoadConfig(variant=variant, group_size=16, target_modules=["q_proj", "v_proj"])
    get_peft_model(lab.model(), config).save_pretrained(str(tmp_path))
    report = describe(tmp_path)
    assert report["refusal"] is None
    assert report["num_parameters"] == 3 * 2 * (64 + 32)  # a factor and a turn per output


def test_beft_inspection_and_refusal(lab, tmp_path):
    model = get_peft_model(lab.model(), BeftConfig(target_modules=["v_proj"]))
    model.save_pretrained(str(tmp_path))
    assert describe(tmp_path)["num_parameters"] == 3 * 32
    edit(tmp_path, bias="all")
    with pytest.raises(AdapterError, match="bias"):
        lab.load(tmp_path)
