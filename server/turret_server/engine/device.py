"""Which device serves, in which dtype, and how much of its memory holds keys and values."""

from __future__ import annotations

import os

import torch

from turret_kernels import gpu, native
from turret_server.engine.settings import EngineSettings
from turret_server.errors import StartupError

_CPU_KV_BYTES = 1 << 30
# Of a GPU's memory that the weights left; the rest is for adapters, activations and graphs.
_GPU_KV_SHARE = 0.8


def resolve_device(name: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        StartupError: it is not there, or has no kernels.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and gpu.AVAILABLE else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise StartupError(
            f"the device {name!r} is not served",
            "known are auto, cpu, cuda and cuda:N",
            "Use one of them.",
        )
    if not torch.cuda.is_available():
        raise StartupError(
            f"the device {name!r} is not there",
            "this torch sees no GPU"
            + ("" if torch.version.cuda or torch.version.hip else ": it was built for CPUs"),
            "Use --device cpu, or install a torch for your GPU (https://pytorch.org).",
        )
    if int(number or 0) >= torch.cuda.device_count():
        raise StartupError(
            f"the device {name!r} is not there",
            f"there are {torch.cuda.device_count()} GPUs, counted from 0",
            "Name one of them.",
        )
    if not gpu.AVAILABLE:
        raise StartupError(
            f"the device {name!r} cannot be served",
            f"its kernels need triton {'.'.join(map(str, gpu.MINIMUM))} or newer",
            "pip install triton, or use --device cpu.",
        )
    return torch.device("cuda", int(number or 0))


def rank_device(name: str, rank: int) -> torch.device:
    """The device of one of several processes: the CPU, or the GPUs from `name` on.

    Raises:
        StartupError: it is not there, or has no kernels.
    """
    first = resolve_device(name)
    return first if first.type == "cpu" else resolve_device(f"cuda:{first.index + rank}")


def use_threads(settings: EngineSettings) -> None:
    """Let this process use its part of the CPU."""
    threads = settings.threads
    if settings.tensor_parallel > 1:
        every = threads or _num_processors()
        threads = max(1, every // settings.tensor_parallel)
    if threads:
        torch.set_num_threads(threads)
        native.set_threads(threads)
    if native.lib is not None and settings.dtype != "float32":
        # The native kernels have threads of their own; what is left to torch is small, and
        # a second set of threads would compete for the same cores.
        torch.set_num_threads(1)


def _num_processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype for "auto", "bfloat16", "float16" or "float32".

    Raises:
        StartupError: the device does not compute in it.
    """
    if device.type == "cuda":
        if name == "auto":
            name = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        return getattr(torch, name)
    if name == "float16":
        raise StartupError(
            "the dtype float16 is not served on a CPU",
            "it has kernels for bfloat16 and float32",
            "Use --dtype bfloat16.",
        )
    # Without kernels of our own bf16 is emulated: slow, and a row's result depends on how many
    # others share the step, so that a seed would no longer mean the same tokens.
    exact = "float32" if native.lib is None else "bfloat16"
    return getattr(torch, exact if name == "auto" else name)


def kv_cache_bytes(asked: int, device: torch.device) -> int:
    """Memory for keys and values; 0 asks for what suits the device.

    Call it when the weights are there.
    """
    if asked:
        return asked
    if device.type == "cpu":
        return _CPU_KV_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _GPU_KV_SHARE)
