"""`y = x W^T + b` with a weight laid out once for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from turret_kernels import native, quantized
from turret_kernels.native import TILES, lib


@dataclass(slots=True)
class LinearWeight:
    """A weight as `linear` wants it; made by `pack_linear` or `quantize_linear`.

    Attributes:
        data: the weight; its layout is private to this file.
        out_features: rows of W.
        in_features: columns of W.
        packed: laid out for the native kernel.
        method: how it was quantised, if it was; unless packed, `data` is a tensor of torchao then.
        scale: float32 [out_features], by which codes of int8 are multiplied; where packed.
    """

    data: Tensor
    out_features: int
    in_features: int
    packed: bool
    method: quantized.Method | None = None
    scale: Tensor | None = None


def pack_linear(weight: Tensor) -> LinearWeight:
    """Lay out `weight` [out, in] for `linear`. The caller may drop the original."""
    n, k = weight.shape
    weight = weight.contiguous()
    packed = _has_kernel(weight)
    if packed and lib is not None:
        data = torch.empty(-(-n // 16) * 16 * k, dtype=weight.dtype)  # torch aligns to 64 bytes
        lib.turret_pack(data.data_ptr(), weight.data_ptr(), n, k)
        weight = data
    return LinearWeight(weight, n, k, packed)


def quantize_linear(
    weight: Tensor, method: quantized.Method, inputs: slice = quantized.ALL
) -> LinearWeight:
    """Quantise `weight` [out, in], or some inputs of it, for `linear`: see `quantized.quantize`."""
    data = quantized.quantize(weight, method, inputs)
    n, k = data.shape
    if method == "int8" and _has_kernel(data):
        codes, scale = quantized.int8_parts(data)
        return LinearWeight(_pack_codes(codes), n, k, True, method, scale)
    return LinearWeight(data, n, k, False, method)


def _has_kernel(weight: Tensor) -> bool:
    """Whether the native kernel takes a weight [out, in] of this dtype and size."""
    return (
        lib is not None
        and weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and weight.shape[1] % 32 == 0
    )


def _pack_codes(codes: Tensor) -> Tensor:
    """int8 [out, in] as the native kernel wants it: [out / 16, in / 2, 2, 16], in one dimension."""
    n, k = codes.shape
    padded = F.pad(codes, (0, 0, 0, -n % 16))
    return padded.view(-1, 16, k // 2, 2).permute(0, 2, 3, 1).reshape(-1)


def _unpack_codes(packed: Tensor, n: int, k: int) -> Tensor:
    return packed.view(-1, k // 2, 2, 16).permute(0, 3, 1, 2).reshape(-1, k)[:n]


def slice_linear(weight: LinearWeight, first: int, last: int) -> LinearWeight:
    """The outputs [first, last) of a weight.

    A view where both are multiples of 16, or of 64 in int4; else the part is unpacked, or packed
    anew if it is of int8.
    """
    rows, k = last - first, weight.in_features
    if not weight.packed and weight.method is not None:
        part = quantized.rows(weight.data, weight.method, first, last)
        if part is None:
            return pack_linear(unpack_linear(weight)[first:last].to(weight.data.dtype))
        return LinearWeight(part, rows, k, False, weight.method)
    if not weight.packed:
        return LinearWeight(weight.data[first:last], rows, k, False)
    scale = None if weight.scale is None else weight.scale[first:last]
    if first % 16 == 0 and (last % 16 == 0 or last == weight.out_features):
        data = weight.data[first * k : -(-last // 16) * 16 * k]
        return LinearWeight(data, rows, k, True, weight.method, scale)
    if scale is None:
        return LinearWeight(unpack_linear(weight)[first:last], rows, k, False)
    codes = _unpack_codes(weight.data, weight.out_features, k)[first:last]
    return LinearWeight(_pack_codes(codes), rows, k, True, weight.method, scale)


def unpack_linear(weight: LinearWeight) -> Tensor:
    """The weight as `pack_linear` got it: [out, in]; float32 and rounded if it was quantised."""
    n, k = weight.out_features, weight.in_features
    if weight.scale is not None:
        return _unpack_codes(weight.data, n, k) * weight.scale[:, None]
    if weight.method is not None:
        return quantized.dequantize(weight.data, weight.method)
    if not weight.packed:
        return weight.data
    return weight.data.view(-1, k // 2, 16, 2).transpose(1, 2).reshape(-1, k)[:n]


def linear(
    x: Tensor,
    weight: LinearWeight,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`x` [T, in], contiguous -> [T, out]; accumulates in float32.

    Args:
        x: [T, in_features] in the dtype of the weight.
        weight: from `pack_linear` or `quantize_linear`.
        bias: [out_features] or None.
        out_dtype: dtype of the result, that of `x` (default) or float32 (for logits).
        out: where to write it, [T, out]: columns of a wider tensor, say.
    """
    out_dtype = out_dtype or x.dtype
    if weight.method is not None and weight.scale is None:
        y = quantized.product(x, weight.data, weight.method)
        y = (y if bias is None else y.add_(bias)).to(out_dtype)
        return y if out is None else out.copy_(y)
    if not weight.packed or lib is None:
        if x.is_cuda and out_dtype != x.dtype and bias is None:
            y = torch.mm(x, weight.data.T, out_dtype=out_dtype)  # not rounded in between
        else:
            y = F.linear(x, weight.data, bias).to(out_dtype)
        return y if out is None else out.copy_(y)
    rows = x.shape[0]
    y = native.allocate((rows, weight.out_features), out_dtype) if out is None else out
    sizes = rows, weight.out_features, weight.in_features
    pointers = y.data_ptr(), y.stride(0), x.data_ptr(), weight.data.data_ptr()
    bias_pointer = None if bias is None else bias.data_ptr()
    options = TILES, out_dtype == torch.float32
    if weight.scale is None:
        lib.turret_linear(*pointers, bias_pointer, *sizes, *options)
    else:
        lib.turret_linear_int8(*pointers, weight.scale.data_ptr(), bias_pointer, *sizes, *options)
    return y
