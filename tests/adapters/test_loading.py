"""Reading an adapter: what is told before its data are read."""

import os

import pytest
import torch

from turret_adapters.errors import AdapterMalformed
from turret_adapters.loading import read_adapter


def test_a_file_larger_than_its_base_could_need_is_not_read(lab, tmp_path, shape):
    """A hole costs its owner nothing, and the loading thread a minute for every ten gigabytes."""
    lab.save_lora(tmp_path)
    os.truncate(tmp_path / "adapter_model.safetensors", (64 << 20) + 1)
    with pytest.raises(AdapterMalformed, match="67108865 bytes long; at most 67108864 are read"):
        read_adapter(tmp_path, shape, torch.float32)
