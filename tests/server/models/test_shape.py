"""What a base's files say without being loaded is what the loaded model says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Gemma3TextConfig, Qwen2Config, Qwen3Config

from turret_adapters.sites import NORMED
from turret_adapters.spec import LINEARS, Module, Site
from turret_server.errors import StartupError
from turret_server.models.decoder import Decoder
from turret_server.models.shape import stored_shape


@pytest.mark.parametrize("config", [Qwen2Config, Qwen3Config, Gemma3TextConfig])
def test_stored_is_loaded(save_tiny, config):
    folder, _ = save_tiny(config, head_dim=16)
    loaded = Decoder.load(folder, torch.float32, torch.device("cpu"), 64).shape
    stored = stored_shape(folder, torch.float32)
    same = {"weight": None, "bias": None, "gain": None}
    assert replace(stored, **same) == replace(loaded, **same)
    for site in stored.sites():
        assert torch.equal(stored.weight(site), loaded.weight(site)), site
    for site in (Site(1, module) for module in LINEARS):
        ours, theirs = stored.bias(site), loaded.bias(site)
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs), site
    gains = [Site(1, module) for module in (*NORMED, Module.Q, Module.K)]
    for site in (*gains, Site(-1, Module.HEAD_IN)):
        has_norm = stored.has_qk_norms if site.module in LINEARS else stored.has(site)
        if has_norm:
            assert torch.equal(stored.gain(site), loaded.gain(site)), site


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_stored_is_loaded_where_it_is_quantised(save_tiny, method):
    folder, _ = save_tiny(Qwen2Config, hidden_size=128, intermediate_size=192, head_dim=32)
    bf16, cpu = torch.bfloat16, torch.device("cpu")
    loaded = Decoder.load(folder, bf16, cpu, 64, quantization=method).shape
    stored = stored_shape(folder, bf16, method, cpu)
    assert stored.is_quantized
    for site in stored.sites():
        assert torch.equal(stored.weight(site), loaded.weight(site)), site


def test_damaged_files_are_refused_before_anything_is_read(save_tiny):
    folder, _ = save_tiny(Qwen2Config)
    (folder / "model.safetensors").unlink()
    with pytest.raises(StartupError):
        stored_shape(folder, torch.float32)
