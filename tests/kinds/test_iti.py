import json

import pytest
import torch
from tests.kinds.cases.iti import CHOSEN, directions, write

from turret_adapters.errors import AdapterError, AdapterUnsupported
from turret_adapters.files import AdapterFiles
from turret_adapters.inspect import describe
from turret_adapters.kinds.iti import KIND
from turret_adapters.positions import NO_END
from turret_adapters.spec import Module, Site

BAKED = {"model.layers.0.self_attn.o_proj.bias": torch.ones(64)}
PRE = {"space": "pre_o", "alpha": 2.0}


@pytest.fixture
def lab(labs):
    return labs("llama")


def compiled(lab, folder):
    with AdapterFiles.open(folder) as files:
        return KIND.compile(files, lab.engine.decoder.shape)


def test_heads_of_one_layer_share_an_offset(lab, tmp_path):
    found = directions()
    write(tmp_path, found, **PRE)
    components = compiled(lab, tmp_path).components
    assert [c.site for c in components] == [Site(0, Module.HEADS), Site(2, Module.HEADS)]
    for i, (layer, head) in enumerate(CHOSEN):
        vector = next(c.vector for c in components if c.site.layer == layer).view(4, 16)
        shift = 2.0 * found["deviations"][i] * found["directions"][i]
        torch.testing.assert_close(vector[head], shift)
    assert sum(int(c.vector.count_nonzero()) for c in components) == 3 * 16


def test_positions(lab, tmp_path):
    write(tmp_path, BAKED, space="post_o")
    assert compiled(lab, tmp_path).positions is None
    write(tmp_path, BAKED, space="post_o", positions="generating")
    positions = compiled(lab, tmp_path).positions
    assert positions.spans([1, 2, 3, 4]) == [(3, NO_END)]


@pytest.mark.parametrize("space", ["pre_o", "post_o"])
def test_the_space_is_part_of_the_identity(lab, tmp_path, space):
    write(tmp_path, BAKED, space=space)
    (component,) = compiled(lab, tmp_path).components
    is_before = space == "pre_o"
    assert component.site.module is (Module.HEADS if is_before else Module.O)
    assert component.absolute is not is_before


def changed(**tensors):
    return {k: v for k, v in (directions() | tensors).items() if v is not None}


REFUSED = [
    (BAKED, {}, "space is None"),
    (BAKED, {"space": "pre"}, "space"),
    (BAKED, {"space": "post_o", "positions": None}, "positions"),
    (BAKED, {"space": "post_o", "alpha": 2.0}, "'alpha'"),
    (BAKED, {"space": "post_o", "version": 2}, "version 2"),
    (BAKED, {"space": "post_o", "version": True}, "version is True"),
    ({"model.layers.0.self_attn.o_proj.bias": torch.ones(32)}, {"space": "post_o"}, "shape"),
    ({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}, {"space": "post_o"}, "q_proj"),
    (directions() | BAKED, PRE, "o_proj.bias"),
    (directions(), {"space": "pre_o"}, "alpha is None"),
    (directions(), {"space": "pre_o", "alpha": True}, "alpha is True"),
    (directions(), {"space": "pre_o", "alpha": 1e300}, "overflow"),
    (directions(), {"space": "post_o", "alpha": 2.0}, "before o_proj"),
    (changed(deviations=None), PRE, "deviations"),
    (changed(layers=torch.tensor([0, 1, 3])), PRE, "layers holds 3, and this base has 3"),
    (changed(layers=torch.tensor([0, -1, 2])), PRE, "layers holds -1"),
    (changed(heads=torch.tensor([0, 4, 2])), PRE, "heads holds 4"),
    (changed(layers=torch.tensor([1, 1, 1]), heads=torch.tensor([0, 0, 1])), PRE, "twice"),
    (changed(layers=torch.tensor([], dtype=torch.int64)), PRE, "layers has shape"),
    (changed(layers=torch.tensor(1)), PRE, "layers has shape"),
]


@pytest.mark.parametrize(("tensors", "config", "why"), REFUSED)
def test_refusals(lab, tmp_path, tensors, config, why):
    write(tmp_path, tensors, **config)
    with pytest.raises(AdapterError, match=why):
        lab.load(tmp_path)


def test_another_kind_of_our_format(lab, tmp_path):
    write(tmp_path, BAKED, space="post_o", kind="no_kind")
    with pytest.raises(AdapterUnsupported, match="'no_kind'"):
        lab.load(tmp_path)


@pytest.mark.parametrize("layers", [[0, 3, 2], [0, 10**12, 2], [-5, 0, 1]])
def test_inspection(tmp_path, layers):
    """A small file that names a huge layer costs nothing."""
    write(tmp_path, changed(layers=torch.tensor(layers)), **PRE)
    report = describe(tmp_path)
    assert (report["refusal"] is None) == (layers == [0, 3, 2])
    json.dumps(report)


def test_inspection_of_a_baked_one(tmp_path):
    write(tmp_path, BAKED, space="post_o")
    assert describe(tmp_path)["modules"] == {"o_proj": {"ranks": [], "layers": [0]}}
