"""What the kinds of sparse deltas, changed rows and mixtures refuse, and what they tell."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.kinds.lab import CASES

from turret_adapters.components import LowRank, RowDelta, SparseDelta
from turret_adapters.errors import AdapterError, AdapterMalformed, AdapterUnsupported
from turret_adapters.files import AdapterFiles
from turret_adapters.inspect import describe
from turret_adapters.registry import detect

BY_NAME = {case.name: case for case in CASES}
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def make(labs, tmp_path):
    """Write a case's adapter; its folder, and the shape of its base."""

    def write(name, base="llama"):
        lab, folder = labs(base), tmp_path / name
        BY_NAME[name].make(folder, lab.model())
        return folder, lab.engine.decoder.shape

    return write


def program_of(folder, shape):
    with AdapterFiles.open(folder) as files:
        return detect(files).compile(files, shape)


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change(folder, key, tensor):
    (path,) = folder.glob("*.safetensors")
    save_file(load_file(path) | {key: tensor}, path)


def refused(folder, shape, text, error=AdapterError):
    with pytest.raises(error) as caught:
        program_of(folder, shape)
    assert text in str(caught.value)
    assert caught.value.fix


SETTINGS = [
    ("shira", {"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ("shira", {"use_future_trick": True}, "use_future_trick"),
    ("shira", {"r": 4}, "contradicts the rank"),
    ("shira", {"r": 0}, "r is 0"),
    ("shira", {"target_modules": ["q_proj"]}, "does not"),
    ("supertuning", {"save_precomputed_indices": False}, "save_precomputed_indices"),
    ("supertuning", {"sparsity": 1.0}, "not in [0, 1)"),
    ("supertuning", {"sparsity": 0.5}, "expected"),
    ("supertuning", {"r": 2}, "has no A"),
    ("trainable_tokens", {"token_indices": [1, 2]}, "expected"),
    ("trainable_tokens", {"token_indices": [42, 5, 99, 7, 30, 128]}, "'128'"),
    ("trainable_tokens", {"token_indices": [42, 5, 99, 7, 30, -1]}, "'-1'"),
    ("trainable_tokens", {"token_indices": [42, 5, 99, 7, 30, 42]}, "twice"),
    ("trainable_tokens", {"token_indices": [42, 5, 99, 7, 30, True]}, "not a list"),
    ("trainable_tokens", {"token_indices": None}, "not a list"),
    ("trainable_tokens", {"target_modules": ["lm_head"]}, "does not include"),
    ("poly", {"task_id": None}, '"task_id": 0 (to 2)'),
    ("poly", {"task_id": 3}, "there are 3 tasks"),
    ("poly", {"task_id": -1}, "task_id"),
    ("poly", {"n_splits": 5}, "n_splits is 5"),
    ("poly", {"n_tasks": 4}, "expected"),
    ("poly", {"poly_type": "other"}, "poly_type"),
    ("loramoe", {"bias": "all"}, "bias"),
    ("loramoe", {"lora_nums": 7}, "expected [7, 64]"),
    ("loramoe", {"lora_nums": 9}, "no A8"),
    ("loramoe", {"lora_nums": 10**9}, "more than"),
    ("loramoe", {"fan_in_fan_out": True}, "fan_in_fan_out"),
    ("loramoe", {"r": 3}, "contradicts the rank"),
]


@pytest.mark.parametrize(
    ("name", "fields", "text"), SETTINGS, ids=[f"{n}-{str(f)[:50]}" for n, f, _ in SETTINGS]
)
def test_settings(make, name, fields, text):
    folder, shape = make(name)
    edit(folder, **fields)
    refused(folder, shape, text)


@pytest.mark.parametrize("place", [64, -1])
@pytest.mark.parametrize("row", [0, 1])
def test_shira_positions_outside_of_the_weight(make, place, row):
    folder, shape = make("shira")
    indices = load_file(folder / "adapter_model.safetensors")[f"{Q0}.shira_indices"]
    indices[row, 0] = place
    change(folder, f"{Q0}.shira_indices", indices)
    refused(folder, shape, "64 x 64", AdapterMalformed)


def test_shira_from_windows(make):
    """PEFT stores the positions as float32 there."""
    folder, shape = make("shira")
    before = program_of(folder, shape)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({k: t.float() for k, t in tensors.items()}, path)
    after = program_of(folder, shape)
    for one, two in zip(before.components, after.components, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.tensors, two.tensors, strict=True))
    change(folder, f"{Q0}.shira_indices", tensors[f"{Q0}.shira_indices"] + 0.5)
    refused(folder, shape, "no exact integers", AdapterMalformed)


@pytest.mark.parametrize("place", [-1, 4096])
def test_supertuning_positions_outside_of_the_weight(make, place):
    folder, shape = make("supertuning")
    key = f"{Q0}.supertuning_indices"
    indices = load_file(folder / "adapter_model.safetensors")[key]
    indices[3] = place
    change(folder, key, indices)
    refused(folder, shape, "4096 elements", AdapterMalformed)


def test_tied_rows_that_differ_do_not_fit_a_tied_base(make):
    folder, shape = make("trainable_tokens-tied", "tied")
    key = "base_model.model.lm_head.trainable_tokens_delta"
    rows = load_file(folder / "adapter_model.safetensors")[key]
    change(folder, key, rows + 1)
    refused(folder, shape, "one matrix for both", AdapterUnsupported)


def test_a_tied_head_that_the_config_names_is_stored_three_times(make):
    folder, shape = make("trainable_tokens-tied", "tied")
    rows = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.lm_head.base_layer.trainable_tokens_delta"
    change(folder, key, rows["base_model.model.lm_head.trainable_tokens_delta"])
    assert len(program_of(folder, shape).components) == 2


def test_loramoe_is_not_lora(make):
    folder, _ = make("loramoe")
    with AdapterFiles.open(folder) as files:
        assert detect(files).name == "loramoe"
    edit(folder, lora_nums=None)
    with AdapterFiles.open(folder) as files:
        assert detect(files).name == "lora"


def test_loramoe_as_a_pickle(make):
    folder, shape = make("loramoe")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(folder, shape, "python -c", AdapterUnsupported)


DIFFS = "diffs.model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([0, 0], "does not ascend"),
        ([-1, 2], "does not ascend"),
        ([5, -1], "does not ascend"),
        ([4095, 1], "position 4096"),
        ([1 << 62, 1 << 62], "does not ascend"),
    ],
)
def test_sparse_ft_steps(make, steps, text):
    folder, shape = make("sparse_ft")
    change(folder, f"{DIFFS}.steps", torch.tensor(steps))
    change(folder, f"{DIFFS}.values", torch.ones(len(steps)))
    refused(folder, shape, text, AdapterMalformed)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("abs.model.layers.0.self_attn.q_proj.weight", "abs and steps and values"),
        ("abs.model.layers.0.self_attn.q_proj.bias", "no such parameter"),
        ("abs.base_model.model.lm_head.bias", "no such parameter"),
        ("diffs.model.norm.weight.other", "no such parameter"),
        ("model.norm.weight", "no such parameter"),
        ("abs.model.layers.0.self_attn.q_norm.weight", "no such parameter"),
        ("abs.model.model.layers.0.self_attn.k_proj.weight", "shape"),
    ],
)
def test_sparse_ft_parameters(make, key, text):
    folder, shape = make("sparse_ft")
    (path,) = folder.glob("*.safetensors")
    kept = {k: t for k, t in load_file(path).items() if "k_proj" not in k}
    save_file(kept | {key: torch.ones(2)}, path)
    refused(folder, shape, text)


def test_sparse_ft_tied_head(make):
    folder, shape = make("sparse_ft", "tied")  # transformers names the embedding alone
    program_of(folder, shape)
    change(folder, "abs.lm_head.weight", torch.ones(128, 64))
    refused(folder, shape, "lm_head", AdapterUnsupported)


def test_sparse_ft_gain_of_zero(labs, make):
    folder, shape = make("sparse_ft-norms")
    gain = labs("llama").engine.decoder.weights.norm.weight
    first, gain[-1] = gain[-1].clone(), 0
    try:
        refused(folder, shape, "norm that are 0", AdapterUnsupported)
    finally:
        gain[-1] = first


def test_sparse_ft_as_published_and_converted(make, tmp_path, monkeypatch):
    """The command in the refusal makes the file that is read."""
    folder, shape = make("sparse_ft-embedding")
    want = load_file(folder / "pytorch_diff.safetensors")
    names = [k.removeprefix("diffs.").removesuffix(".steps") for k in want if k.endswith("steps")]
    published = {
        "diffs": {
            name: {
                "size": (1, 1),  # of the parameter; not needed
                "index_steps": want[f"diffs.{name}.steps"].tolist(),
                "values": want[f"diffs.{name}.values"],
            }
            for name in names
        },
        "abs": {"model.norm.weight": torch.ones(64)},
    }
    (folder / "pytorch_diff.safetensors").unlink()
    torch.save(published, folder / "pytorch_diff.bin")
    with pytest.raises(AdapterUnsupported, match="never read") as caught:
        program_of(folder, shape)
    code = caught.value.fix.split('"')[1]
    monkeypatch.chdir(folder)
    exec(code, {})
    found = load_file(folder / "pytorch_diff.safetensors")
    assert found.keys() == want.keys() | {"abs.model.norm.weight"}
    assert all(torch.equal(found[key], want[key]) for key in want)
    assert {type(c) for c in program_of(folder, shape).components} >= {RowDelta, SparseDelta}


def test_a_poly_adapter_has_a_digest_for_every_task(make, labs):
    folder, _ = make("poly")
    lab = labs("llama")
    one = lab.load(folder)
    edit(folder, task_id=1)
    two = lab.load(folder)
    assert one.digest != two.digest
    lab.unload(one)
    lab.unload(two)


def test_a_mixture_takes_its_gate_as_ranks(make):
    folder, shape = make("loramoe-odd", "qwen")
    parts = program_of(folder, shape).components
    assert {type(part) for part in parts} == {LowRank}
    assert {part.rank for part in parts} == {3 * 3 + 3}
    assert {part.num_experts for part in parts if isinstance(part, LowRank)} == {3}


NEEDS_BASE = ("trainable_tokens", "sparse_ft-norms", "sparse_ft-abs")


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("shira", "llama"),
        ("shira-mask", "qwen"),
        ("supertuning", "llama"),
        ("supertuning-lora", "qwen"),
        ("trainable_tokens", "llama"),
        ("trainable_tokens-tied", "tied"),
        ("poly-splits", "qwen"),
        ("loramoe", "llama"),
        ("sparse_ft", "llama"),
        ("sparse_ft-biases", "qwen"),
        ("sparse_ft-embedding", "llama"),
        ("sparse_ft-norms", "llama"),
        ("sparse_ft-abs", "qwen"),
    ],
)
def test_inspection_without_a_base(make, name, base):
    folder, shape = make(name, base)
    report = describe(folder)
    if name.startswith(NEEDS_BASE):
        assert "no base is at hand" in report["refusal"]["why"]
        return
    assert report["refusal"] is None
    assert report["num_parameters"] > 0
    assert set(report["modules"]) == set(program_of(folder, shape).targets)


def test_whole_weights_are_refused_where_the_base_is_quantised(make):
    """The base's own are rounded: what an adapter changed cannot be told from that."""
    folder, shape = make("sparse_ft-abs")
    program_of(folder, shape)
    refused(folder, dataclasses.replace(shape, is_quantized=True), "the base is quantized")
