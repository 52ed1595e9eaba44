import sys

import pytest
import torch

from turret_kernels import native
from turret_server.engine.device import (
    kv_cache_bytes,
    resolve_device,
    resolve_dtype,
    resolve_overlap,
    resolve_quantization,
)
from turret_server.errors import StartupError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("turret_kernels.gpu.AVAILABLE", True)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu():
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(StartupError, match="is not there"):
        resolve_device("cuda")


@pytest.mark.usefixtures("two_gpus")
def test_with_two_gpus(monkeypatch):
    assert resolve_device("auto") == resolve_device("cuda") == CUDA
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == CPU
    with pytest.raises(StartupError, match="is not there"):
        resolve_device("cuda:2")
    monkeypatch.setattr("turret_kernels.gpu.AVAILABLE", False)
    assert resolve_device("auto") == CPU
    with pytest.raises(StartupError, match="need triton"):
        resolve_device("cuda")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:-1", "", "mps"])
@pytest.mark.usefixtures("no_gpu")
def test_unknown_devices(name):
    with pytest.raises(StartupError, match="is not served"):
        resolve_device(name)


def test_dtypes_of_a_cpu():
    expected = torch.float32 if native.lib is None else torch.bfloat16
    assert resolve_dtype("auto", CPU) == expected
    assert resolve_dtype("float32", CPU) == torch.float32
    with pytest.raises(StartupError, match="float16"):
        resolve_dtype("float16", CPU)


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16")]
)
def test_dtypes_of_a_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_dtype("auto", CUDA) == getattr(torch, expected)
    assert resolve_dtype("float32", CUDA) == torch.float32
    if expected == "bfloat16":
        assert resolve_dtype("bfloat16", CUDA) == torch.bfloat16
    else:
        with pytest.raises(StartupError, match="bfloat16") as refused:
            resolve_dtype("bfloat16", CUDA)
        assert "--dtype float16" in refused.value.fix


def test_memory_for_keys_and_values(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 << 30, 80 << 30))
    assert kv_cache_bytes(5, CPU, 1 << 30) == kv_cache_bytes(5, CUDA, 1 << 30) == 5
    assert kv_cache_bytes(0, CPU, 1 << 30) == 1 << 30
    assert kv_cache_bytes(0, CUDA, 0) == 8 << 30
    assert kv_cache_bytes(0, CUDA, 5 << 30) == 4 << 30  # the adapters' rows come later
    assert kv_cache_bytes(0, CUDA, 11 << 30) == 0


def test_quantisations_of_a_cpu():
    assert resolve_quantization("none", CPU, torch.bfloat16) is None
    for dtype in (torch.bfloat16, torch.float32):
        assert resolve_quantization("int8", CPU, dtype) == "int8"
        assert resolve_quantization("int4", CPU, dtype) == "int4"
    with pytest.raises(StartupError, match="fp8") as refused:
        resolve_quantization("fp8", CPU, torch.bfloat16)
    assert "compute capability 9.0 or newer, and the device is cpu" in refused.value.why


@pytest.mark.parametrize("name", ["", "int2", "INT8", "None"])
def test_unknown_quantisations(name):
    with pytest.raises(StartupError, match="is not served") as refused:
        resolve_quantization(name, CPU, torch.bfloat16)
    assert "none, int8, int4, fp8" in refused.value.why


@pytest.mark.parametrize(
    ("capability", "served"),
    [((7, 5), {"int8"}), ((8, 9), {"int8", "int4"}), ((9, 0), {"int8", "int4", "fp8"})],
)
def test_quantisations_of_a_gpu(monkeypatch, capability, served):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for method in ("int8", "int4", "fp8"):
        if method in served:
            assert resolve_quantization(method, CUDA, torch.bfloat16) == method
        else:
            with pytest.raises(StartupError, match="cannot be served") as refused:
                resolve_quantization(method, CUDA, torch.bfloat16)
            assert f"the device is one of {capability[0]}.{capability[1]}" in refused.value.why
    if "int4" in served:
        with pytest.raises(StartupError, match="cannot be served") as refused:
            resolve_quantization("int4", CUDA, torch.float16)
        assert "bfloat16, not float16" in refused.value.why


def test_quantisation_without_torchao(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(StartupError, match="cannot be served") as refused:
        resolve_quantization("int8", CPU, torch.bfloat16)
    assert "turret[quantization]" in refused.value.fix


def test_steps_overlap_on_a_gpu():
    assert resolve_overlap("auto", CUDA, 1)
    assert not resolve_overlap("auto", CPU, 1)
    assert not resolve_overlap("auto", CUDA, 2)
    assert resolve_overlap("on", CPU, 1)
    assert not resolve_overlap("off", CUDA, 1)
    with pytest.raises(StartupError, match="several processes"):
        resolve_overlap("on", CUDA, 2)
    with pytest.raises(StartupError, match="'1' is not known"):
        resolve_overlap("1", CPU, 1)
