"""What CATS and TEAL refuse."""

from __future__ import annotations

import json

import pytest
from tests.kinds.cases.cats import checkpoint, config_json, write

from turret_adapters.errors import AdapterError, AdapterMalformed, AdapterUnsupported
from turret_adapters.files import AdapterFiles
from turret_adapters.inspect import describe
from turret_adapters.registry import detect

LAYERS = [0.1, 0.2, 0.3]


def refusal(folder, shape, error=AdapterError) -> str:
    with AdapterFiles.open(folder) as files, pytest.raises(error) as caught:
        detect(files).compile(files, shape)
    assert all((caught.value.what, caught.value.why, caught.value.fix))
    return caught.value.why


@pytest.fixture
def shape(labs):
    return labs("llama").engine.decoder.shape


@pytest.mark.parametrize("kind", ["cats", "teal"])
@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([0.1, 0.2], "2 layers"),
        ([0.1, 0.2, None], "layer 2"),
        ([0.1, True, 0.3], "layer 1"),
        ([0.1, 1e39, 0.3], "layer 1"),
        ([0, -1, 0.0], "nothing"),
        ("0.1", "list"),
    ],
)
def test_thresholds_that_make_no_sense(shape, tmp_path, kind, values, why):
    write(tmp_path, kind, values if kind == "cats" else {"up_proj": values})
    assert why in refusal(tmp_path, shape, AdapterMalformed)


@pytest.mark.parametrize("kind", ["cats", "teal"])
def test_unknown_fields_and_tensors(shape, tmp_path, kind):
    table = LAYERS if kind == "cats" else {"up_proj": LAYERS}
    write(tmp_path, kind, table, positions="generated")
    assert "positions" in refusal(tmp_path, shape, AdapterUnsupported)
    write(tmp_path, kind, table)
    (tmp_path / "adapter.safetensors").write_bytes(b"")
    assert "no tensors" in refusal(tmp_path, shape, AdapterUnsupported)


@pytest.mark.parametrize("table", [{"lm_head": LAYERS}, {"act_fn": LAYERS}])
def test_teal_has_linears(shape, tmp_path, table):
    write(tmp_path, "teal", table)
    assert "names" in refusal(tmp_path, shape, AdapterUnsupported)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_relu", True),
        ("use_resilu", True),
        ("use_sparse_predictor", True),
        ("cut_pre_mlp", True),
        ("cut_pre_attn", True),
        ("use_sparse_model", False),
        ("hidden_act", "gelu"),
    ],
)
def test_checkpoints_that_compute_something_else(shape, tmp_path, field, value):
    (tmp_path / "config.json").write_text(json.dumps(config_json(LAYERS) | {field: value}))
    assert field in refusal(tmp_path, shape, AdapterUnsupported)


def test_weights_that_were_tuned(labs, shape, tmp_path):
    model = labs("llama").model()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] += 0.25
    checkpoint(tmp_path, model)
    assert "differs" in refusal(tmp_path, shape, AdapterUnsupported)


def test_weights_in_a_pickle(shape, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_json(LAYERS)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pickle" in refusal(tmp_path, shape, AdapterUnsupported)


def test_published_teal(tmp_path):
    (tmp_path / "histograms/layer-0/mlp").mkdir(parents=True)
    (tmp_path / "histograms/layer-0/mlp/histograms.pt").write_bytes(b"")
    report = describe(tmp_path)
    assert report["kind"] == "teal"
    assert "pickle" in report["refusal"]["why"]


def test_inspect_without_a_base(tmp_path):
    write(tmp_path / "cats", "cats", LAYERS)
    write(tmp_path / "teal", "teal", {"q_proj": LAYERS, "down_proj": [0, 0, 0.5]})
    assert describe(tmp_path / "cats")["modules"] == {"act_fn": {"ranks": [], "layers": [0, 1, 2]}}
    assert describe(tmp_path / "teal")["modules"] == {
        "q_proj": {"ranks": [], "layers": [0, 1, 2]},
        "down_proj": {"ranks": [], "layers": [2]},
    }
