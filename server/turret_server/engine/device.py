"""Which device serves, in which dtype, and how much of its memory holds keys and values."""

from __future__ import annotations

import importlib.util
import os

import torch

from turret_kernels import gpu, native
from turret_kernels.quantized import METHODS, Method, is_method
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


def ternary_rows(settings: EngineSettings, device: torch.device) -> int:
    """Rank rows of two bits a value.

    On a GPU as many as there are others. On a CPU none: no native kernel reads them, and what torch
    computes from them takes several times as long (docs/decisions/0016-ternary-and-fused.md).
    """
    if settings.adapter_ternary_rows is not None:
        return settings.adapter_ternary_rows
    return settings.adapter_rank_rows if device.type == "cuda" else 0


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
        # Torch emulates bfloat16 before compute capability 8.0; our kernels do not compile there.
        has_bfloat16 = bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
        if name == "auto":
            name = "bfloat16" if has_bfloat16 else "float16"
        if name == "bfloat16" and not has_bfloat16:
            raise StartupError(
                "the dtype bfloat16 is not served on this GPU",
                "it has no instructions for it: its compute capability is below 8.0",
                "Use --dtype float16.",
            )
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


def resolve_quantization(name: str, device: torch.device, dtype: torch.dtype) -> Method | None:
    """The quantisation for "none", "int8", "int4" or "fp8".

    Raises:
        StartupError: it is unknown, torchao is missing, or the device or dtype has no kernels.
    """
    if name == "none":
        return None
    if not is_method(name):
        raise StartupError(
            f"the quantization {name!r} is not served",
            f"known are none, {', '.join(METHODS)}",
            "Use one of them.",
        )
    what = f"--quantization {name} cannot be served"
    if importlib.util.find_spec("torchao") is None:
        raise StartupError(
            what,
            "torchao, which quantises, is not installed",
            "Install it: pip install 'turret[quantization]'.",
        )
    is_gpu = device.type == "cuda"
    capability = torch.cuda.get_device_capability(device) if is_gpu and torch.version.cuda else None
    needed = {"int8": None, "int4": (8, 0) if is_gpu else None, "fp8": (9, 0)}[name]
    if needed is not None and (capability is None or capability < needed):
        found = device.type if capability is None else "one of {}.{}".format(*capability)
        raise StartupError(
            what,
            f"it needs an NVIDIA GPU of compute capability {needed[0]}.{needed[1]} or newer, and "
            f"the device is {found}",
            "Use --quantization int8.",
        )
    if needed is not None and dtype != torch.bfloat16:
        raise StartupError(
            what,
            f"on a GPU its kernels compute in bfloat16, not {str(dtype).removeprefix('torch.')}",
            "Use --dtype bfloat16, or --quantization int8.",
        )
    return name


def resolve_overlap(choice: str, device: torch.device, tensor_parallel: int) -> bool:
    """Whether a step is launched while the one before it runs, for "auto", "on" or "off".

    Raises:
        StartupError: the choice is unknown, or several processes share the model.
    """
    if choice not in ("auto", "on", "off"):
        raise StartupError(
            f"--overlap {choice!r} is not known", "known are auto, on and off", "Use one of them."
        )
    if choice == "on" and tensor_parallel > 1:
        raise StartupError(
            "steps of several processes cannot overlap",
            "followers are told every token, and the last are not known before their step ends",
            "Use --overlap auto, or --tensor-parallel 1.",
        )
    if choice == "auto":
        return device.type == "cuda" and tensor_parallel == 1
    return choice == "on"


def kv_cache_bytes(asked: int, device: torch.device, reserved: int) -> int:
    """Memory for keys and values; 0 asks for what suits the device.

    Call it when the weights are there. On a GPU `reserved` bytes stay free for what comes later.
    """
    if asked:
        return asked
    if device.type == "cpu":
        return _CPU_KV_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(max(0, free - reserved) * _GPU_KV_SHARE)
