"""docs/kernels.md: what every kernel compiles to, and how exact it is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import triton
from tests.kernels.gates import cases
from tests.kernels.gates.compiler import AMD_TARGET, TARGETS, compile_for_amd, compile_gate
from tests.kernels.gates.gate import Report

_HEAD = f"""# Triton kernels: what they compile to

Written by `make kernels`; the limits stand in `tests/kernels/gates/cases/`, and the tests hold
every kernel to them. Compiled without a GPU, by triton {triton.__version__}, for
{", ".join(TARGETS)}: three numbers are those three, one number holds for all.

- **registers** per thread (at most 255); **spills** in bytes per thread: there must be none;
  **shared** memory in bytes.
- **wide loads**, **wide stores**: those of 16 bytes or more, of all there are in the code. The
  others read indices and scalars, and of sparse matrices everything.
- **tensor cores**: matrix instructions in the code.
- **error**: of float32 against a float64 reference, relative to the largest value, the worst of the
  parity tests in Triton's interpreter (which multiplies matrices in float32, where a GPU has tf32).

None of this is a time: no GPU has measured one yet (docs/gpu.md).

"""
_COLUMNS = (
    "kernel",
    "launched for",
    "registers",
    "spills",
    "shared",
    "wide loads",
    "wide stores",
    "tensor cores",
    "error",
)


_AMD_HEAD = f"""
## {AMD_TARGET}

The same launches for an MI300, one size of each kernel; nothing may be spilled, and shared memory
has 64 KiB. Its warps have 64 threads, so four of them are eight, and where a tile leaves a thread
few values its loads are narrower than 16 bytes. No kernel has run on one.

"""
_AMD_COLUMNS = (
    "kernel",
    "launched for",
    "registers",
    "shared",
    "wide loads",
    "tensor cores",
)


def page() -> str:
    """The whole page."""
    errors = parity_errors()
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    for gates in cases.by_op().values():
        for gate in gates:
            reports = [compile_gate(gate, target) for target in TARGETS]
            kernel = reports[0].kernel
            error = f"{errors[kernel]:.0e}" if kernel in errors else "none measured"
            lines.append(_line([f"`{kernel}`", gate.size, *_cells(reports), error]))
    return _HEAD + "\n".join(lines) + "\n" + _AMD_HEAD + _amd_table()


def _amd_table() -> str:
    lines = [_line(_AMD_COLUMNS), _line(["---"] * len(_AMD_COLUMNS))]
    for kernel, gate in cases.by_kernel().items():
        found = compile_for_amd(gate)
        numbers = found.registers, found.shared, f"{found.wide_loads} of {found.loads}"
        cells = [f"`{kernel}`", gate.size, *numbers, found.tensor_cores]
        lines.append(_line([str(cell) for cell in cells]))
    return "\n".join(lines) + "\n"


def parity_errors() -> dict[str, float]:
    """By kernel: the worst error in float32 of the parity tests, run in the interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "tests/kernels", "-m", "triton", "-q"]
        subprocess.run(
            [*command, f"--junitxml={file}", "-o", "junit_family=xunit1"],  # xunit2: no properties
            env={**os.environ, "TRITON_INTERPRET": "1"},
            stdout=sys.stderr,
            check=True,
        )
        worst: dict[str, float] = {}
        for case in ElementTree.parse(file).iter("testcase"):
            noted = {p.get("name"): p.get("value", "") for p in case.iter("property")}
            for kernel in noted.get("kernels", "").split():
                worst[kernel] = max(worst.get(kernel, 0.0), float(noted["float32_error"]))
    return worst


def _cells(reports: list[Report]) -> list[str]:
    return [
        _per_target(r.registers for r in reports),
        _per_target(r.stack for r in reports),
        _per_target(r.shared for r in reports),
        _per_target(f"{r.wide_loads} of {r.loads}" for r in reports),
        _per_target(f"{r.wide_stores} of {r.stores}" for r in reports),
        _per_target(r.tensor_cores for r in reports),
    ]


def _per_target(values) -> str:
    texts = [str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"
