"""PEFT types that no kind reads: each is refused with its own reason."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from turret_adapters.errors import AdapterUnsupported
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.refused import REFUSED
from turret_adapters.registry import detect

# A word of the reason, by type: what is in the way differs, and with it what a user can do.
REASONS = {
    "ADAMSS": "clusters",
    "BOFT": "butterfly",
    "C3A": "block-circulant",
    "FOURIERFT": "two ranks per frequency",
    "FROD": "replaces the whole weight",
    "GLORA": "element by element",
    "HIRA": "element by element",
    "LILY": "averages its router",
    "OSF": "singular vectors",
    "PSOFT": "flip their signs",
    "PVERA": "distribution",
    "RANDLORA": "random low-rank matrices",
    "SHADOW": "second network",
    "WAVEFT": "wavelet",
    "XLORA": "second pass",
}


def test_every_reason_has_its_test():
    assert REASONS.keys() == REFUSED.keys()


@pytest.mark.parametrize("peft_type", REASONS)
def test_it_is_refused_with_its_own_reason(tmp_path, peft_type):
    """If this fails because a kind reads the type now, its entry in REFUSED must go."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": peft_type}))
    save_file({"base_model.model.x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with AdapterFiles.open(tmp_path) as files, pytest.raises(AdapterUnsupported) as caught:
        detect(files)
    assert REASONS[peft_type] in caught.value.why
    assert caught.value.fix
