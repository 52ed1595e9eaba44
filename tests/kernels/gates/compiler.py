"""Compiles what a launch function would launch, for GPUs that are not there.

Triton asks its driver for the GPU and compiles for what it hears: here, for what the gate wants.
The launch function runs as it does in a server, on meta tensors (shapes and strides without memory,
addresses that count as aligned); the launch itself stops behind the compiler.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from tests.kernels.gates.gate import AmdReport, Gate, Report
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TARGETS = ("sm_80", "sm_90", "sm_100")
AMD_TARGET = "gfx942"  # MI300

# 16 bytes of a thread at once: v4.b32, v2.b64, v8.b16; sm_100 has 32.
_ACCESS = re.compile(r"\b(ld|st)\.(?:[a-z_]\w*(?:::\w+)*\.)*?global\.\S*?(?:v(\d)\.)?[bfus](\d+)\b")
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\S* \[[^]]*\], \[[^]]*\], (\w+)")
_BULK = re.compile(r"\bcp\.async\.bulk\.(?:tensor\.)?\S*?shared::c(?:ta|luster)\S*global")
_MATRIX = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_AMD_LOAD = re.compile(r"\b(?:global|buffer)_load_\w+")
_AMD_USAGE = re.compile(r"\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s+(\d+)")


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def compile_gate(gate: Gate, target: str) -> Report:
    """Compile the gate's kernel for a target; Triton's own cache makes the second time cheap."""
    return _report(*_compile(gate, GPUTarget("cuda", int(target.removeprefix("sm_")), 32)))


def compile_for_amd(gate: Gate) -> AmdReport:
    """The same for AMD_TARGET, as a torch built for ROCm would launch it."""
    before, torch.version.hip = torch.version.hip, "6.4"
    try:
        return _amd_report(*_compile(gate, GPUTarget("hip", AMD_TARGET, 64)))
    finally:
        torch.version.hip = before


def kernel_name(gate: Gate) -> str:
    """What `compile_gate` would compile; without compiling it."""
    names: list[str] = []

    def note(self: Any, *args: Any, **options: Any) -> None:
        names.append(self.fn.__name__)

    with _running(note):
        gate.launch()
    return gate.kernel or names[0]


def _compile(gate: Gate, target: GPUTarget) -> tuple[str, Any]:
    found: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.fn.__name__, kernel))
        return kernel

    with _driver(target), _running(compile_only):
        gate.launch()
    named = [(name, kernel) for name, kernel in found if gate.kernel in ("", name)]
    if len(named) != 1:
        raise ValueError(
            f"{gate.size}: the launch ran {[name for name, _ in found]}; set Gate.kernel to one"
        )
    return named[0]


class _Driver:
    """As much of a driver as compiling needs; its device is the target: caches are by device."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int | str:
        return self._target.arch

    def get_current_stream(self, device: int | str) -> int:
        return 0


@contextmanager
def _driver(target: GPUTarget) -> Iterator[None]:
    driver = triton.runtime.driver
    before = driver.active if torch.cuda.is_available() else None
    driver.set_active(_Driver(target))
    try:
        yield
    finally:
        if before is not None:  # else there is no GPU to return to
            driver.set_active(before)


@contextmanager
def _running(launch: Callable[..., Any]) -> Iterator[None]:
    """Inside, launches call this."""
    run, JITFunction.run = JITFunction.run, launch
    try:
        yield
    finally:
        JITFunction.run = run


def _report(name: str, kernel: Any) -> Report:
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    match = _USAGE.search(usage)
    if match is None:
        raise ValueError(f"no resource usage of {name} in {usage!r}")
    loads, stores = [], []
    for kind, vector, bits in _ACCESS.findall(ptx):
        (loads if kind == "ld" else stores).append(int(vector or 1) * int(bits) // 8)
    loads += [int(size, 0) for size in _COPY.findall(ptx)] + [16] * len(_BULK.findall(ptx))
    return Report(
        kernel=name,
        registers=int(match[1]),
        stack=int(match[2]),
        shared=kernel.metadata.shared,
        wide_loads=sum(size >= 16 for size in loads),
        loads=len(loads),
        wide_stores=sum(size >= 16 for size in stores),
        stores=len(stores),
        tensor_cores=len(_MATRIX.findall(ptx)),
        fp_fusion=kernel.metadata.enable_fp_fusion,
    )


def _amd_report(name: str, kernel: Any) -> AmdReport:
    assembly = kernel.asm["amdgcn"]
    usage = {key: int(value) for key, value in _AMD_USAGE.findall(assembly)}
    loads = _AMD_LOAD.findall(assembly)
    return AmdReport(
        kernel=name,
        registers=usage["vgpr_count"],
        spills=usage["vgpr_spill_count"],
        scratch=usage["private_segment_fixed_size"],
        shared=kernel.metadata.shared,
        wide_loads=sum(load.endswith("dwordx4") for load in loads),
        loads=len(loads),
        tensor_cores=len(re.findall(r"\bv_mfma_", assembly)),
    )
