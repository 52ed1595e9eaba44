import pytest
import torch

from turret_kernels.linear import linear, pack_linear

ROWS = [1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 40, 63, 64, 100]
SHAPES = [(48, 64), (17, 32), (96, 576), (33, 1536), (20, 48)]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_matches_float64(rows, out_features, in_features, biased):
    x = torch.randn(rows, in_features).bfloat16()
    w = torch.randn(out_features, in_features).bfloat16()
    b = torch.randn(out_features).bfloat16() if biased else None
    expected = x.double() @ w.double().T + (0 if b is None else b.double())
    y = linear(x, pack_linear(w), b)
    # One rounding to bf16 (2^-8 relative) on top of float32 accumulation.
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=2e-2)


def test_float32_output_is_not_rounded():
    x, w = torch.randn(5, 64).bfloat16(), torch.randn(50, 64).bfloat16()
    y = linear(x, pack_linear(w), out_dtype=torch.float32)
    assert y.dtype == torch.float32
    if pack_linear(w).packed:
        torch.testing.assert_close(y, x.float() @ w.float().T, rtol=1e-5, atol=1e-4)


def test_a_row_does_not_depend_on_its_batch():
    """Bit-equal whatever the number of rows: what makes seeded sampling reproducible."""
    x, w = torch.randn(77, 576).bfloat16(), pack_linear(torch.randn(100, 576).bfloat16())
    if not w.packed:
        return  # torch makes no such promise
    whole = linear(x, w)
    for rows in (1, 5, 16, 33):
        assert torch.equal(linear(x[:rows].contiguous(), w), whole[:rows])


def test_float32_weights_take_the_torch_path():
    x, w = torch.randn(3, 64), torch.randn(50, 64)
    torch.testing.assert_close(linear(x, pack_linear(w)), x @ w.T)
