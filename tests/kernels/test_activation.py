import pytest
import torch

from turret_kernels.activation import ACTIVATIONS, act_mul, act_mul_reference
from turret_kernels.testing import exact

# The interpreter speaks of what is meant: exp may overflow.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")

# 1536 and 2048: a piece more than one, and no remainder.
SIZES = [(1, 16), (3, 100), (70, 1536), (2, 2048)]


# Two steps: kernels round twice, as the reference does, before and after the last product.
@pytest.mark.triton
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_silu(rows, width, dtype, assert_parity):
    x = (torch.randn(rows, 2 * width) * 4).to(dtype)
    assert_parity(act_mul(x, "silu"), act_mul_reference(exact(x), "silu"), steps=2)


@pytest.mark.triton
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_gelu_tanh(rows, width, dtype):
    """Two steps, too; torch itself loses the tail below -4, where its 1 + tanh cancels."""
    x = (torch.randn(rows, 2 * width) * 4).to(dtype)
    step = 2 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6
    truth = act_mul_reference(x.double(), "gelu_tanh").to(dtype)
    torch.testing.assert_close(act_mul(x, "gelu_tanh"), truth, rtol=step, atol=4e-6)


@pytest.mark.triton
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extremes_stay_finite(activation, dtype):
    gate = torch.tensor([[-200.0, 200.0, 0.0, -88.0] * 8]).to(dtype)
    out = act_mul(torch.cat([gate, torch.ones_like(gate)], dim=1), activation)
    assert torch.isfinite(out).all()
    assert out[0, 1] == 200
