import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from turret_kernels.norms import add_rms_norm, rms_norm, rms_norm_reference
from turret_kernels.testing import exact


# Two steps: kernels round twice, as the reference does, before and after the last product.
# 33 and 17 rows: no multiple of what a program takes; 2100: more than one warp's share of a row.
@pytest.mark.triton
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (33, 100), (17, 576), (200, 64), (2, 2100)])
def test_rms_norm(rows, width, dtype, assert_parity):
    x, w = torch.randn(rows, width).to(dtype), torch.randn(width).to(dtype)
    assert_parity(rms_norm(x, w, 1e-5), rms_norm_reference(exact(x), exact(w), 1e-5), steps=2)


@pytest.mark.triton
def test_heads_of_a_fused_projection(dtype, assert_parity):
    """q/k norm: the last dimension of a strided view."""
    fused, w = torch.randn(5, 4 * 64 + 32).to(dtype), torch.randn(64).to(dtype)
    x = fused[:, : 4 * 64].view(5, 4, 64)
    y = rms_norm(x, w, 1e-5)
    assert y.is_contiguous()
    assert_parity(y, rms_norm_reference(exact(x), exact(w), 1e-5), steps=2)


@pytest.mark.triton
@pytest.mark.parametrize(("rows", "width"), [(1, 576), (9, 576), (30, 100)])
def test_add_rms_norm_updates_the_residual(rows, width, dtype, assert_parity):
    x, residual = torch.randn(2, rows, width).to(dtype)
    w = torch.randn(width).to(dtype)
    total = x + residual
    y = add_rms_norm(x, residual, w, 1e-6)
    assert torch.equal(residual, total)
    assert_parity(y, rms_norm_reference(exact(total), exact(w), 1e-6), steps=2)


@pytest.mark.triton
def test_rows_that_lie_apart(dtype, assert_parity):
    """The output of a wider product as `x`; what lies between its rows is not read."""
    wide = torch.full((5, 160), float("nan")).to(dtype)
    wide[:, :128] = torch.randn(5, 128)
    x, residual, w = wide[:, :128], torch.randn(5, 128).to(dtype), torch.randn(128).to(dtype)
    total = x + residual
    y = add_rms_norm(x, residual, w, 1e-6)
    assert torch.equal(residual, total)
    assert_parity(y, rms_norm_reference(exact(total), exact(w), 1e-6), steps=2)


@pytest.mark.triton
def test_a_row_does_not_depend_on_its_batch(dtype):
    x, w = torch.randn(40, 128).to(dtype), torch.randn(128).to(dtype)
    whole = rms_norm(x, w, 1e-5)
    for row in (0, 17, 39):
        assert torch.equal(rms_norm(x[row : row + 1], w, 1e-5)[0], whole[row])


class TestGemma:
    """Gains of float32 beside narrower rows: nothing is rounded before the product."""

    @pytest.mark.parametrize(("rows", "width"), [(1, 64), (17, 100), (3, 640)])
    def test_rms_norm(self, rows, width):
        x, w = torch.randn(rows, width).bfloat16(), torch.randn(width).bfloat16()
        gain = 1.0 + w.float()
        theirs = Gemma3RMSNorm(width, eps=1e-6).bfloat16()
        theirs.weight.data = w
        y = rms_norm(x, gain, 1e-6)
        # Sums in another order move a value across a rounding edge, here and there.
        torch.testing.assert_close(y, theirs(x), rtol=2**-7, atol=1e-6)
        assert (y != theirs(x)).float().mean() < 0.01
        assert torch.equal(rms_norm_reference(x, gain, 1e-6), theirs(x))

    @pytest.mark.triton
    def test_heads_of_a_fused_projection(self, dtype, assert_parity):
        fused, w = torch.randn(5, 4 * 64 + 32).to(dtype), torch.randn(64)
        x = fused[:, : 4 * 64].view(5, 4, 64)
        assert_parity(rms_norm(x, w, 1e-5), rms_norm_reference(exact(x), exact(w), 1e-5))

    @pytest.mark.triton
    def test_add_rms_norm_updates_the_residual(self, dtype, assert_parity):
        x, residual = torch.randn(2, 9, 100).to(dtype)
        w, total = torch.randn(100), x + residual
        y = add_rms_norm(x, residual, w, 1e-6)
        assert torch.equal(residual, total)
        assert_parity(y, rms_norm_reference(exact(total), exact(w), 1e-6))

    @pytest.mark.triton
    def test_only_the_product_is_rounded(self):
        x, w = torch.randn(4, 64).half(), torch.randn(64)
        truth = rms_norm_reference(x.double(), w.double(), 1e-6).half()
        assert torch.equal(rms_norm(x, w, 1e-6), truth)
