"""Reading checkpoints: layout, conversion, identity, and damage refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Qwen2Config

from turret_server.errors import StartupError
from turret_server.models.config import DecoderConfig
from turret_server.models.weights import DecoderWeights, load_weights


def _load(folder: Path, dtype=torch.float32, progress=None) -> DecoderWeights:
    config = DecoderConfig.from_folder(folder)
    return load_weights(folder, config, dtype, torch.device("cpu"), progress)


def _edit(folder: Path, **changes) -> None:
    """Rewrite model.safetensors with tensors replaced, added, or (None) removed."""
    path = folder / "model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, path)


def test_q_k_v_are_stacked_in_this_order(save_tiny):
    folder, model = save_tiny(Qwen2Config)
    layer = _load(folder).layers[1]
    attention = model.model.layers[1].self_attn
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    assert torch.equal(layer.qkv_bias, torch.cat([part.bias for part in parts]))
    assert (layer.qkv.out_features, layer.qkv.in_features) == (64 + 32 + 32, 64)


def test_weights_are_converted_to_the_served_dtype(save_tiny):
    folder, model = save_tiny(LlamaConfig)
    weights = _load(folder, torch.bfloat16)
    assert torch.equal(weights.embed, model.model.embed_tokens.weight.bfloat16())
    assert weights.layers[0].input_norm.gain.dtype == torch.bfloat16


def test_progress_counts_bytes_up_to_the_whole(save_tiny):
    folder, model = save_tiny(LlamaConfig)
    seen: list[tuple[int, int]] = []
    _load(folder, torch.bfloat16, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (model.num_parameters() * 4,) * 2


def test_digest_is_of_the_values_not_of_the_files(save_tiny):
    folder, model = save_tiny(LlamaConfig)
    digest = _load(folder).digest
    assert _load(folder, torch.bfloat16).digest == digest

    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink()
    assert _load(folder).digest == digest

    model.model.norm.weight.data[7] += 1e-3
    model.save_pretrained(folder)
    assert _load(folder).digest != digest


def test_digest_depends_on_the_configuration(save_tiny):
    folder, _ = save_tiny(LlamaConfig)
    digest = _load(folder).digest
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"rms_norm_eps": 1e-5}))
    assert _load(folder).digest != digest


def test_stored_rotary_frequencies_are_ignored(save_tiny):
    folder, _ = save_tiny(LlamaConfig)
    digest = _load(folder).digest
    _edit(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert _load(folder).digest == digest


def test_a_tied_head_may_be_stored_again_but_not_differ(save_tiny):
    folder, model = save_tiny(LlamaConfig, tie_word_embeddings=True)
    embed = model.model.embed_tokens.weight.detach()
    _edit(folder, **{"lm_head.weight": embed.clone()})
    assert _load(folder).head.out_features == 128
    _edit(folder, **{"lm_head.weight": embed + 1})
    with pytest.raises(StartupError, match=r"'lm_head\.weight' differs"):
        _load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": None}, r"lack 'model\.norm\.weight'"),
        ({"model.norm.bias": torch.ones(64)}, r"hold 'model\.norm\.bias'"),
        ({"model.norm.weight": torch.ones(63)}, r"'model\.norm\.weight' is \[63\].*\[64\]"),
        ({"model.norm.weight": torch.ones(64, dtype=torch.int8)}, r"'model\.norm\.weight'.*I8"),
    ],
    ids=["missing", "unexpected", "misshapen", "integers"],
)
def test_wrong_tensors_are_refused_by_name(save_tiny, changes, message):
    folder, _ = save_tiny(LlamaConfig)
    _edit(folder, **changes)
    with pytest.raises(StartupError, match=message):
        _load(folder)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _claims_terabytes(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 42) + path.read_bytes()[8:])


def _no_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 8) + b"not json" + bytes(64))


def _shape_beyond_bytes(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, 4]}
    header = json.dumps({"x": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


@pytest.mark.parametrize(
    "damage",
    [
        _truncated,
        _claims_terabytes,
        _no_header,
        _shape_beyond_bytes,
        lambda path: path.write_bytes(b""),
    ],
    ids=["truncated", "terabytes", "no header", "shape", "empty"],
)
def test_damaged_file_is_refused_by_name(save_tiny, damage):
    folder, _ = save_tiny(LlamaConfig)
    damage(folder / "model.safetensors")
    with pytest.raises(StartupError, match=r"model\.safetensors is not a whole"):
        _load(folder)


def test_folder_without_weights_is_refused(save_tiny):
    folder, _ = save_tiny(LlamaConfig)
    (folder / "model.safetensors").unlink()
    with pytest.raises(StartupError, match=r"neither model\.safetensors nor"):
        _load(folder)


def test_missing_shard_is_refused_by_name(save_tiny):
    folder, _ = save_tiny(LlamaConfig, max_shard_size="40KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(StartupError, match=shard.name):
        _load(folder)


@pytest.mark.parametrize("index", ['{"weight_map": {"x": "../x"}}', '{"weight_map": 3}', "{"])
def test_foreign_index_is_refused(save_tiny, index):
    folder, _ = save_tiny(LlamaConfig)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(StartupError, match=r"index\.json"):
        _load(folder)
