import pytest
import torch

from turret_kernels.norms import add_rms_norm, rms_norm, rms_norm_reference


@pytest.mark.parametrize("width", [64, 100, 576])
@pytest.mark.parametrize("rows", [1, 7, 200])
def test_rms_norm(rows, width):
    x, w = torch.randn(rows, width).bfloat16(), torch.randn(width).bfloat16()
    expected = rms_norm_reference(x, w, 1e-5)
    # Sums in another order may move one rounding: one bf16 step.
    torch.testing.assert_close(rms_norm(x, w, 1e-5), expected, rtol=2**-7, atol=1e-6)


def test_heads_of_a_fused_projection():
    """q/k norm: the last dimension of a strided view."""
    fused, w = torch.randn(5, 4 * 64 + 32).bfloat16(), torch.randn(64).bfloat16()
    x = fused[:, : 4 * 64].view(5, 4, 64)
    expected = rms_norm_reference(x, w, 1e-5)
    torch.testing.assert_close(rms_norm(x, w, 1e-5), expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 9, 130])
def test_add_rms_norm_updates_the_residual(rows):
    x, residual = torch.randn(rows, 576).bfloat16(), torch.randn(rows, 576).bfloat16()
    w = torch.randn(576).bfloat16()
    total = x + residual
    y = add_rms_norm(x, residual, w, 1e-6)
    assert torch.equal(residual, total)
    torch.testing.assert_close(y, rms_norm_reference(total, w, 1e-6), rtol=2**-7, atol=1e-6)
