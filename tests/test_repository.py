"""Rules of the tree that no tool checks."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("server/turret_server", "kernels/turret_kernels", "adapters/turret_adapters")


def test_top_level_folders_are_no_packages():
    """`kernels` and `adapters` are names of other people's distributions."""
    for folder in ("server", "kernels", "adapters", "clients", "bench", "tests", "examples"):
        assert not (ROOT / folder / "__init__.py").exists(), folder


def test_packages_are_typed():
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists(), package


def test_every_op_has_its_parity_test():
    ops = {p.stem for p in (ROOT / "kernels/turret_kernels").glob("*.py")}
    ops -= {"__init__", "testing", "elementwise"}  # tested in the banks
    missing = [op for op in ops if not (ROOT / f"tests/kernels/test_{op}.py").exists()]
    assert not missing


def test_nothing_unpickles():
    sources = [p for folder in (*PACKAGES, "clients") for p in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 50
    banned = {"pickle", "dill", "cloudpickle", "torch.load", "recv_pyobj", "send_pyobj"}
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = {ast.unparse(node.func)} if isinstance(node, ast.Call) else set()
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & banned, source


def test_the_http_side_loads_no_torch():
    code = "import sys, turret_server.api.app, turret_server.engine.link; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy.core"} & set(run.stdout.split())
