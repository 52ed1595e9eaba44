import pytest
import torch

from turret_kernels.activation import silu_mul, silu_mul_reference


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (3, 100), (70, 1536)])
def test_silu_mul(rows, width):
    x = (torch.randn(rows, 2 * width) * 4).bfloat16()
    # exp() is a polynomial here: a value next to a rounding edge may fall on the other side.
    torch.testing.assert_close(silu_mul(x), silu_mul_reference(x), rtol=2**-7, atol=1e-6)


def test_extremes_stay_finite():
    gate = torch.tensor([[-200.0, 200.0, 0.0, -88.0] * 8]).bfloat16()
    out = silu_mul(torch.cat([gate, torch.ones_like(gate)], dim=1))
    assert torch.isfinite(out).all()
    assert out[0, 1] == 200
