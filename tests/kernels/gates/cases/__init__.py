"""The gates, one file per op. A new file is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from tests.kernels.gates.compiler import kernel_name
from tests.kernels.gates.gate import Gate


def by_op() -> dict[str, list[Gate]]:
    """`GATES` of every file here."""
    ops = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {op: importlib.import_module(f"{__name__}.{op}").GATES for op in ops}


def by_kernel() -> dict[str, Gate]:
    """The first gate of every kernel."""
    first: dict[str, Gate] = {}
    for gates in by_op().values():
        for gate in gates:
            first.setdefault(kernel_name(gate), gate)
    return first
