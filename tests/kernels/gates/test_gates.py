"""Every kernel, compiled for GPUs that are not there, keeps to its limits."""

from pathlib import Path

import pytest
from tests.kernels.gates import cases
from tests.kernels.gates.compiler import TARGETS, compile_for_amd, compile_gate

from turret_kernels import gpu

ROOT = Path(__file__).parents[3]
GATES = {f"{op}-{gate.size}": gate for op, gates in cases.by_op().items() for gate in gates}
BY_KERNEL = cases.by_kernel()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_a_kernel_keeps_to_its_limits(gate, target):
    report = compile_gate(gate, target)
    assert report.stack == 0, f"registers are spilled: {report}"
    assert report.registers <= gate.registers, report
    assert report.shared <= gate.shared, report
    assert report.narrow <= gate.narrow, report
    assert bool(report.tensor_cores) == gate.tensor_cores, report
    assert report.fp_fusion, "launch with enable_fp_fusion=True: defaults differ by version"


@pytest.mark.parametrize(("kernel", "gate"), BY_KERNEL.items(), ids=BY_KERNEL)
def test_an_mi300_runs_it_too(kernel, gate):
    """One size of each: compiling all would take a minute."""
    report = compile_for_amd(gate)
    assert report.kernel == kernel
    assert report.spills == report.scratch == 0, f"registers are spilled: {report}"
    assert report.shared <= 65536, report
    assert bool(report.tensor_cores) == gate.tensor_cores, report


def test_every_op_has_gates():
    files = Path(gpu.__file__).parent.glob("*.py")
    assert set(cases.by_op()) == {p.stem for p in files if "num_warps=" in p.read_text()}


def test_the_page_shows_every_gate():
    page = (ROOT / "docs/kernels.md").read_text()
    missing = [name for name, gate in GATES.items() if f"| {gate.size} |" not in page]
    missing += [name for name in BY_KERNEL if page.count(f"| `{name}` |") < 2]
    assert not missing, "make kernels"
