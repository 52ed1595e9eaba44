"""LoFiT's two formats: what is refused, and that a whole model's other weights must be the base."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.kinds.cases.lofit import compact, drawn, hooked, whole_model, write_compact
from tests.kinds.lab import PROMPTS, assert_same

from turret_adapters.components import Offset, Scale
from turret_adapters.digest import content_digest
from turret_adapters.errors import AdapterError, AdapterMalformed, AdapterUnsupported
from turret_adapters.files import AdapterFiles
from turret_adapters.inspect import describe
from turret_adapters.kinds.lofit import KIND
from turret_adapters.registry import detect
from turret_server.engine.messages import AdapterUse

D = 16  # of the lab's bases: 3 layers of 4 heads


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def small(tmp_path, lab):
    compact(scaled=True)(tmp_path, lab.model())
    return tmp_path


@pytest.fixture
def whole(tmp_path, lab):
    whole_model(tmp_path, lab.model())
    return tmp_path


def compiled(lab, folder):
    with AdapterFiles.open(folder) as files:
        return detect(files).compile(files, lab.engine.decoder.shape)


def edit(path, **tensors):
    """Set tensors, or remove those given as None."""
    found = load_file(path) | tensors
    found = {key: value for key, value in found.items() if value is not None}
    save_file(found, path, metadata={"format": "pt"})


def test_only_layers_with_a_head_have_components(lab, small):
    program = compiled(lab, small)
    found = {(type(c), c.site.layer) for c in program.components}
    assert found == {(Offset, 0), (Scale, 0), (Offset, 2), (Scale, 2)}
    assert program.targets == ["attention"]
    tensors = load_file(small / "adapter.safetensors")
    (last,) = (c for c in program.components if isinstance(c, Offset) and c.site.layer == 2)
    assert torch.equal(last.vector[D : 2 * D], tensors["v"][0])
    assert torch.equal(last.vector[:D], tensors["v"][2])
    assert not last.vector[2 * D :].any()
    assert program.notes == (f"fitted on 'tiny/base', served on {lab.engine.decoder.shape.name!r}",)


def test_the_weight_moves_scale_and_offset_along_a_line(lab, tmp_path):
    heads = [(1, 0), (2, 3)]
    v, a = drawn(heads, D, 0.5), drawn(heads, D, 0.5)
    write_compact(tmp_path, v, a)
    loaded = lab.load(tmp_path)
    for weight in (-0.5, 0.5, 2.0):
        reference = hooked(
            lab.model(),
            {head: weight * x for head, x in v.items()},
            {head: weight * x for head, x in a.items()},
        )
        (answer,) = lab.run([lab.ask(PROMPTS[0], AdapterUse(loaded.digest, weight))])
        assert_same(answer, reference)
    lab.unload(loaded)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layers": torch.tensor([2, 0, 3])}, "layers holds 3, and this base has 3"),
        ({"heads": torch.tensor([1, 4, 0])}, "heads holds 4, and this base has 4"),
        ({"heads": torch.tensor([1, -1, 0])}, "heads holds -1"),
        ({"heads": torch.tensor([1, 3, 1])}, "no list of different heads"),
        ({"heads": torch.tensor([1, 3])}, "no list of different heads"),
        ({"heads": torch.tensor([[1], [3], [0]])}, "no list of integers"),
        ({"heads": torch.tensor([1.0, 3.0, 0.0])}, "no list of integers"),
        ({"layers": torch.zeros(0, dtype=torch.int64)}, "layers has 0 entries"),
        ({"v": torch.ones(3, D + 1)}, "v has shape"),
        ({"v": torch.zeros(3, D), "A": None}, "would do nothing"),
        ({"v": None}, "has no 'v'"),
        ({"b": torch.ones(3, D)}, "holds 'b'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_a_compact_adapter_is_refused(lab, small, change, why):
    edit(small / "adapter.safetensors", **change)
    with pytest.raises(AdapterError, match=why):
        compiled(lab, small)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"version": 2}, AdapterUnsupported),
        ({"version": None}, AdapterMalformed),
        ({"version": True}, AdapterMalformed),
        ({"positions": "last"}, AdapterUnsupported),
        ({"kind": "LoFiT"}, AdapterUnsupported),
    ],
)
def test_a_config_is_refused(lab, small, fields, error):
    path = small / "turret_adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(error):
        compiled(lab, small)


def test_it_can_be_inspected_without_a_base(small):
    report = describe(small)
    assert report["refusal"] is None
    assert report["kind"] == "lofit"
    assert report["num_parameters"] == 4 * 4 * D  # two layers, all heads side by side
    assert report["modules"] == {"attention": {"ranks": [], "layers": [0, 2]}}


def test_so_can_a_whole_model(whole):
    report = describe(whole)
    assert report["refusal"] is None
    assert report["notes"] == ["its copy of the base's weights was not compared"]


WEIGHTS = [
    "model.embed_tokens.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("key", WEIGHTS)
def test_a_model_that_was_trained_further_is_refused(lab, whole, key):
    path = whole / "model.safetensors"
    edit(path, **{key: load_file(path)[key] * 1.01})
    with pytest.raises(AdapterUnsupported, match=f"'{key}' differs from the base's"):
        compiled(lab, whole)


def test_the_base_may_be_stored_in_another_dtype(lab, whole, tmp_path):
    """Served in float32 from float32; the adapter's copy is bf16, as 7B models are saved."""
    path = whole / "model.safetensors"
    save_file({key: t.bfloat16() for key, t in load_file(path).items()}, path)
    assert compiled(lab, whole).components


def test_the_digest_covers_the_copy_of_the_base(whole):
    """An adapter that is known is not compiled again, so nothing that is checked may differ."""

    def digest():
        with AdapterFiles.open(whole) as files:
            return content_digest(KIND, files)

    first, path = digest(), whole / "model.safetensors"
    assert digest() == first
    edit(path, **{WEIGHTS[0]: load_file(path)[WEIGHTS[0]] * 1.01})
    assert digest() != first


@pytest.mark.parametrize("key", ["attn_v.4", "attn_A.00", "attn_w.0"])
def test_a_head_that_the_base_lacks_is_refused(lab, whole, key):
    edit(whole / "model.safetensors", **{f"model.layers.1.self_attn.{key}": torch.ones(D)})
    with pytest.raises(AdapterUnsupported, match=key):
        compiled(lab, whole)


def test_rotary_frequencies_of_old_checkpoints_do_not_matter(lab, whole):
    edit(
        whole / "model.safetensors",
        **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(D // 2)},
    )
    assert compiled(lab, whole).components


def shard(folder, names=("model-1.safetensors", "model-2.safetensors")):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {key: names["v_proj" in key or "attn_v" in key] for key in tensors}
    for name in names:
        save_file({k: t for k, t in tensors.items() if where[k] == name}, folder / name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_model_in_shards(lab, tmp_path):
    reference = whole_model(tmp_path, lab.model())
    shard(tmp_path)
    loaded = lab.load(tmp_path)
    (answer,) = lab.run([lab.ask(PROMPTS[1], AdapterUse(loaded.digest))])
    assert_same(answer, reference)
    lab.unload(loaded)


def test_a_missing_shard_is_refused(lab, whole):
    shard(whole)
    (whole / "model-2.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"model-2\.safetensors"):
        compiled(lab, whole)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a.bin", 3])
def test_an_index_names_files_of_the_folder_only(lab, whole, name):
    shard(whole)
    path = whole / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(AdapterMalformed, match="weight_map"):
        compiled(lab, whole)


def test_a_plain_model_is_no_adapter(lab, tmp_path):
    lab.model().save_pretrained(tmp_path)
    with AdapterFiles.open(tmp_path) as files:
        assert not KIND.detect(files)
