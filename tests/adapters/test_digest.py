import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from turret_adapters.digest import content_digest
from turret_adapters.files import AdapterFiles
from turret_adapters.kinds.lora import KIND

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def digest(path):
    with AdapterFiles.open(path) as files:
        return content_digest(KIND, files)


def rewrite(path, change):
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps(change(config)))


def test_is_hex_and_repeatable(folder):
    assert re.fullmatch("[0-9a-f]{64}", digest(folder))
    assert digest(folder) == digest(folder)


STABLE = {
    "provenance": lambda c: (
        c | {"base_model_name_or_path": "x", "peft_version": "9", "revision": 1}
    ),
    "order of the fields": lambda c: dict(reversed(c.items())),
    "order of a set": lambda c: c | {"target_modules": c["target_modules"][::-1]},
}
CHANGING = {
    "alpha": lambda c: c | {"lora_alpha": 9},
    "targets": lambda c: c | {"target_modules": ["q_proj"]},
    "order of a list": lambda c: c | {"alora_invocation_tokens": [2, 1]},
    "order of patterns": lambda c: c | {"rank_pattern": {"b": 1, "a": 2}},
}


@pytest.mark.parametrize("change", STABLE)
def test_what_does_not_count(folder, change):
    before = digest(folder)
    rewrite(folder, STABLE[change])
    assert digest(folder) == before


@pytest.mark.parametrize("change", CHANGING)
def test_what_counts(folder, change):
    rewrite(folder, lambda c: c | {"alora_invocation_tokens": [1, 2]})
    rewrite(folder, lambda c: c | {"rank_pattern": {"a": 2, "b": 1}})
    before = digest(folder)
    rewrite(folder, CHANGING[change])
    assert digest(folder) != before


def test_the_order_of_tensors_and_the_metadata_do_not_count(folder):
    before = digest(folder)
    tensors = load_file(folder / WEIGHTS)
    data, entries, offset = b"", {"__metadata__": {"other": "words"}}, 0
    for name in sorted(tensors, reverse=True):
        raw = tensors[name].numpy().tobytes()
        entries[name] = {
            "dtype": "F32",
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        data, offset = data + raw, offset + len(raw)
    header = json.dumps(entries).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert digest(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {A0: t[A0] + 1e-6},
        lambda t: t | {A0: t[A0].half()},
        lambda t: t | {A0: t[A0].reshape(2, 64)},
        lambda t: t | {A0: -torch.zeros_like(t[A0])},
        lambda t: {k.replace("layers.0", "layers.9"): v for k, v in t.items()},
    ],
    ids=["a bit", "dtype", "shape", "values", "a name"],
)
def test_tensors_count(folder, change):
    before = digest(folder)
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS)
    assert digest(folder) != before
