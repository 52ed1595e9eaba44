import pytest
import torch

from turret_kernels.norms import add_rms_norm, rms_norm, rms_norm_reference
from turret_kernels.testing import exact

pytestmark = pytest.mark.triton


# Two steps: kernels round twice, as the reference does, before and after the last product.
# 33 and 17 rows: no multiple of what a program takes; 2100: more than one warp's share of a row.
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (33, 100), (17, 576), (200, 64), (2, 2100)])
def test_rms_norm(rows, width, dtype, assert_parity):
    x, w = torch.randn(rows, width).to(dtype), torch.randn(width).to(dtype)
    assert_parity(rms_norm(x, w, 1e-5), rms_norm_reference(exact(x), exact(w), 1e-5), steps=2)


def test_heads_of_a_fused_projection(dtype, assert_parity):
    """q/k norm: the last dimension of a strided view."""
    fused, w = torch.randn(5, 4 * 64 + 32).to(dtype), torch.randn(64).to(dtype)
    x = fused[:, : 4 * 64].view(5, 4, 64)
    y = rms_norm(x, w, 1e-5)
    assert y.is_contiguous()
    assert_parity(y, rms_norm_reference(exact(x), exact(w), 1e-5), steps=2)


@pytest.mark.parametrize(("rows", "width"), [(1, 576), (9, 576), (30, 100)])
def test_add_rms_norm_updates_the_residual(rows, width, dtype, assert_parity):
    x, residual = torch.randn(2, rows, width).to(dtype)
    w = torch.randn(width).to(dtype)
    total = x + residual
    y = add_rms_norm(x, residual, w, 1e-6)
    assert torch.equal(residual, total)
    assert_parity(y, rms_norm_reference(exact(total), exact(w), 1e-6), steps=2)


def test_rows_that_lie_apart(dtype, assert_parity):
    """The output of a wider product as `x`; what lies between its rows is not read."""
    wide = torch.full((5, 160), float("nan")).to(dtype)
    wide[:, :128] = torch.randn(5, 128)
    x, residual, w = wide[:, :128], torch.randn(5, 128).to(dtype), torch.randn(128).to(dtype)
    total = x + residual
    y = add_rms_norm(x, residual, w, 1e-6)
    assert torch.equal(residual, total)
    assert_parity(y, rms_norm_reference(exact(total), exact(w), 1e-6), steps=2)


def test_a_row_does_not_depend_on_its_batch(dtype):
    x, w = torch.randn(40, 128).to(dtype), torch.randn(128).to(dtype)
    whole = rms_norm(x, w, 1e-5)
    for row in (0, 17, 39):
        assert torch.equal(rms_norm(x[row : row + 1], w, 1e-5)[0], whole[row])
