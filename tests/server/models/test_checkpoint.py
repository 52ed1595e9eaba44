"""The mapped safetensors files."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from turret_server.models.checkpoint import Checkpoint


def _resident_kib(path: Path) -> int:
    """Memory of this process that holds pages of `path` (Linux)."""
    total = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_pages_are_given_back_once_read(tmp_path):
    path = tmp_path / "model.safetensors"
    mib = 1 << 18  # float32 values
    tensors = {name: torch.randn(4, mib) for name in ("a", "b")}
    save_file(tensors, path)
    checkpoint = Checkpoint(tmp_path)
    for name, tensor in tensors.items():
        out = torch.empty(4, mib)
        checkpoint.read(name, out)
        assert torch.equal(out, tensor)
    assert _resident_kib(path) < 256  # of 8 MiB
    assert checkpoint.equal("a", "a")
    assert not checkpoint.equal("a", "b")
    assert _resident_kib(path) < 256


def test_a_tensor_lands_in_a_view_in_its_dtype(tmp_path):
    save_file({"x": torch.arange(6.0).view(2, 3)}, tmp_path / "model.safetensors")
    whole = torch.zeros(4, 3, dtype=torch.bfloat16)
    Checkpoint(tmp_path).read("x", whole[1:3])
    assert whole.tolist() == [[0, 0, 0], [0, 1, 2], [3, 4, 5], [0, 0, 0]]


def test_the_language_model_in_a_model_that_also_sees(tmp_path):
    names = [
        "language_model.model.norm.weight",
        "model.language_model.layers.0.x",
        "language_model.lm_head.weight",
        "vision_tower.head.probe",
        "model.multi_modal_projector.y",
        "stranger",
    ]
    save_file({name: torch.ones(1) for name in names}, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).names() == set(names)
    text = {"model.norm.weight", "model.layers.0.x", "lm_head.weight", "stranger"}
    assert Checkpoint(tmp_path, has_vision=True).names() == text


def test_digest_sees_the_first_and_the_last_tensor_and_the_shape(tmp_path):
    def digest(tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, tmp_path / "model.safetensors")
        checkpoint = Checkpoint(tmp_path)
        for name, tensor in tensors.items():
            checkpoint.read(name, torch.empty_like(tensor))
        return checkpoint.digest()

    a, z = torch.arange(8.0), torch.ones(300_000)
    digests = {
        digest({"a": a, "z": z}),
        digest({"a": a + 1, "z": z}),
        digest({"a": a, "z": z + 1}),
        digest({"a": a.view(2, 4), "z": z}),
        digest({"b": a, "z": z}),
    }
    assert len(digests) == 5
    assert digest({"a": a, "z": z}) in digests
