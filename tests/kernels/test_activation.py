import pytest
import torch

from turret_kernels.activation import silu_mul, silu_mul_reference
from turret_kernels.testing import exact

pytestmark = pytest.mark.triton


# Two steps: kernels round twice, as the reference does, before and after the last product.
# 1536 and 2048: a piece more than one, and no remainder.
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (3, 100), (70, 1536), (2, 2048)])
def test_silu_mul(rows, width, dtype, assert_parity):
    x = (torch.randn(rows, 2 * width) * 4).to(dtype)
    assert_parity(silu_mul(x), silu_mul_reference(exact(x)), steps=2)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # the interpreter
def test_extremes_stay_finite(dtype):
    gate = torch.tensor([[-200.0, 200.0, 0.0, -88.0] * 8]).to(dtype)
    out = silu_mul(torch.cat([gate, torch.ones_like(gate)], dim=1))
    assert torch.isfinite(out).all()
    assert out[0, 1] == 200
