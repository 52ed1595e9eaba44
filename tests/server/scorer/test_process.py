"""A scorer's process, called directly."""

from __future__ import annotations

import pytest
import torch

from turret_server.errors import StartupError
from turret_server.scorer import process
from turret_server.scorer.messages import ScorerSettings


def test_its_gpu_is_the_current_one_before_anything_lies_there(monkeypatch):
    """Triton launches on the current device, whatever its arguments are on."""
    done = []

    class Classifier:
        @staticmethod
        def load(folder, dtype, device, *options):
            done.append(device)
            raise StartupError("stop", "", "")

    second = torch.device("cuda", 1)
    monkeypatch.setattr(process, "resolve_device", lambda name: second)
    monkeypatch.setattr(process, "Classifier", Classifier)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(("current", device)))
    with pytest.raises(StartupError, match="stop"):
        process._load(ScorerSettings(model="", device="cuda:1", dtype="float32"))
    assert done == [("current", second), second]
