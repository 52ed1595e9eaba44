"""Products with quantised weights, against their own dequantised tensors."""

import subprocess
import sys

import pytest
import torch

from turret_kernels import native
from turret_kernels.linear import linear, quantize_linear, slice_linear, unpack_linear
from turret_kernels.quantized import METHODS, dequantize, quantize, unfit

BF16 = torch.bfloat16
# Largest error of a weight over the largest weight of its row: half a step of 127 (int8), or of the
# 15 between smallest and largest (int4); and 2% or 10% more, as the scales are rounded, too. Of the
# four significant bits of fp8, half the last.
ROUNDING = {"int8": 0.51 / 127, "int4": 0.55 * 2 / 15, "fp8": 2**-4}


def _exact(x, weight, bias=None):
    y = x.double() @ unpack_linear(weight).double().T
    return y if bias is None else y + bias.double()


def _served(x, method):
    """`x` as the method multiplies it: fp8 rounds every row of it as it does a weight's."""
    if method != "fp8":
        return x
    return unpack_linear(quantize_linear(x.repeat(16, 1), method))[: len(x)]  # in sixteens


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [1, 3, 17, 64])
@pytest.mark.parametrize("biased", [False, True])
def test_is_the_product_with_the_dequantised_weight(method, rows, biased):
    w = torch.randn(208, 192, dtype=BF16)
    x = torch.randn(rows, 192, dtype=BF16)
    b = torch.randn(208, dtype=BF16) if biased else None
    weight = quantize_linear(w, method)
    # The product is rounded to bf16, and the sum with the bias once more: 2^-8 relative in all,
    # of sums that may cancel.
    torch.testing.assert_close(
        linear(x, weight, b).double(),
        _exact(_served(x, method), weight, b),
        rtol=2**-7,
        atol=2**-7,
    )


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_float32_keeps_float32(method):
    x, weight = torch.randn(5, 192), quantize_linear(torch.randn(208, 192), method)
    # 192 products of about 1, accumulated in float32.
    torch.testing.assert_close(linear(x, weight).double(), _exact(x, weight), rtol=0, atol=5e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_is_off_by_its_rounding(method):
    w = torch.randn(64, 128, dtype=BF16)
    found = unpack_linear(quantize_linear(w, method))
    assert found.dtype == torch.float32
    error = (found - w.float()).abs() / w.float().abs().amax(1, keepdim=True)
    assert 0 < error.max() < ROUNDING[method]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("first", "last"), [(0, 64), (64, 208), (128, 192), (16, 48), (192, 208)])
def test_a_slice_is_those_outputs(method, first, last):
    x, weight = (
        torch.randn(4, 192, dtype=BF16),
        quantize_linear(torch.randn(208, 192).to(BF16), method),
    )
    part = slice_linear(weight, first, last)
    assert (part.out_features, part.in_features) == (last - first, 192)
    # Where int4's layout cannot be cut, the part is unpacked: rounded to bf16.
    found = unpack_linear(part)
    assert torch.equal(found, unpack_linear(weight)[first:last].to(found.dtype))
    torch.testing.assert_close(
        linear(x, part), linear(x, weight)[:, first:last], rtol=2**-6, atol=2**-5
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("first", "last"), [(0, 64), (64, 128), (64, 192)])
def test_some_inputs_are_rounded_as_in_the_whole(method, first, last):
    w = torch.randn(208, 192).to(BF16)
    w[:, 100] *= 4  # the largest of most rows lies here
    part = quantize_linear(w, method, slice(first, last))
    assert (part.out_features, part.in_features) == (208, last - first)
    whole = unpack_linear(quantize_linear(w, method))
    assert torch.equal(unpack_linear(part), whole[:, first:last])
    x = torch.randn(4, last - first).to(BF16)
    torch.testing.assert_close(
        linear(x, part).double(), _exact(_served(x, method), part), rtol=2**-7, atol=2**-7
    )


def test_groups_of_int4_are_not_cut():
    with pytest.raises(ValueError, match="input 32 lies inside a group of 64"):
        quantize_linear(torch.randn(32, 128), "int4", slice(32, 96))


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_a_row_does_not_depend_on_its_batch(method):
    x, weight = (
        torch.randn(77, 576).to(BF16),
        quantize_linear(torch.randn(96, 576).to(BF16), method),
    )
    whole = linear(x, weight)
    for rows in (1, 5, 8, 9, 16, 33):
        assert torch.equal(linear(x[:rows].contiguous(), weight), whole[:rows])


@pytest.mark.parametrize(("first", "last"), [(0, 33), (16, 33), (5, 21)])
def test_codes_are_cut_anywhere(first, last):
    w = torch.randn(33, 96).to(BF16)
    weight = quantize_linear(w, "int8")
    assert torch.equal(
        unpack_linear(slice_linear(weight, first, last)), unpack_linear(weight)[first:last]
    )


@pytest.mark.skipif(native.lib is None, reason="no native kernels on this machine")
def test_native_codes_are_those_of_torchao():
    w = torch.randn(208, 192).to(BF16)
    weight = quantize_linear(w, "int8")
    assert weight.packed
    assert torch.equal(unpack_linear(weight), dequantize(quantize(w, "int8"), "int8"))
    # And their logits are not rounded: 192 products of about 1, accumulated in float32.
    x = torch.randn(11, 192).to(BF16)
    y = linear(x, weight, out_dtype=torch.float32)
    torch.testing.assert_close(y.double(), _exact(x, weight), rtol=0, atol=5e-5)


def test_writes_where_it_is_told():
    x, weight = torch.randn(3, 64).to(BF16), quantize_linear(torch.randn(32, 64).to(BF16), "int8")
    wide = torch.zeros(3, 48, dtype=BF16)
    linear(x, weight, out=wide[:, 16:])
    assert torch.equal(wide[:, 16:], linear(x, weight))
    assert not wide[:, :16].any()


@pytest.mark.parametrize(
    ("method", "sizes"),
    [("int8", (16, 24)), ("int4", (16, 96)), ("int4", (24, 64)), ("fp8", (8, 16))],
)
def test_sizes_without_a_kernel_are_refused(method, sizes):
    assert method in (unfit(method, *sizes) or "")
    with pytest.raises(ValueError, match="needs a multiple of"):
        quantize_linear(torch.randn(sizes).to(BF16), method)


def test_serving_without_quantisation_imports_no_torchao():
    code = "import turret_kernels.linear, sys; sys.exit('torchao' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
