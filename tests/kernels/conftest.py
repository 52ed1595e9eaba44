"""What parity tests share. Those marked `triton` also run through the Triton kernels.

Which path a public function takes is the environment's choice, so the same test is run several
times (see the Makefile): natively, in torch alone, and with `TRITON_INTERPRET=1 pytest -m triton`
in Triton's interpreter. On a machine with a GPU the marked tests run there.
"""

import pytest
import torch

from turret_kernels import gpu

ON_GPU = torch.cuda.is_available()
if ON_GPU and not gpu.INTERPRETED:
    DTYPES = [torch.bfloat16, torch.float16, torch.float32]
else:
    DTYPES = [torch.float32, torch.float16] if gpu.INTERPRETED else [torch.bfloat16]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    """What this run's kernels compute in."""
    return request.param


@pytest.fixture(autouse=True)
def launched(request, monkeypatch):
    """Names of the Triton kernels that ran: a test that is marked must not pass without them.

    A marked test finds unwritten memory full of NaN, and makes its tensors on the GPU if there is
    one (what belongs on the host says `device="cpu"`).
    """
    names = set()
    if request.node.get_closest_marker("triton") is None:
        yield names
        return
    has_triton = ON_GPU or gpu.INTERPRETED
    if has_triton:
        _note_launches(names, monkeypatch)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
    with torch.device("cuda" if ON_GPU else "cpu"):
        yield names
    torch.use_deterministic_algorithms(before)
    assert names or not has_triton, "no Triton kernel ran: the test passed on another path"


def _note_launches(names, monkeypatch):
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for kind in (InterpretedFunction, JITFunction):

        def run(self, *args, _run=kind.run, **options):
            names.add(self.fn.__name__)
            return _run(self, *args, **options)

        monkeypatch.setattr(kind, "run", run)


@pytest.fixture
def assert_parity(launched, record_property):
    """`assert_parity(found, expected, steps=1, sums=False)`; the error goes to docs/kernels.md.

    16-bit results may be `steps` roundings away from the reference, which rounds where the kernel
    does: sums in another order, or another exp, end on the other side of a rounding edge. float32
    results are held against a reference in float64 (see `exact`), 32 units in the last place.
    `sums`: large terms may cancel, so all errors are measured by the largest value.
    """
    worst = 0.0

    def check(found, expected, steps=1, sums=False):
        nonlocal worst
        scale = expected.abs().max().item()
        error = (found.to(expected.dtype) - expected).abs().max().item() / scale
        if found.dtype == torch.float32:
            worst = max(worst, error)
            record_property("kernels", " ".join(sorted(launched)))
            record_property("float32_error", worst)
        step = torch.finfo(found.dtype).eps * (32 if found.dtype == torch.float32 else steps)
        atol = step * scale if sums else min(1e-6, step * scale)
        torch.testing.assert_close(found, expected, rtol=step, atol=atol, check_dtype=False)

    return check
