"""Weights of eight or four bits, quantised by torchao as they are loaded; activations stay wide.

    int8  symmetric, one scale per output. On the CPU our kernel multiplies (see `linear`), or else
          torch's: torchao without a compiler would widen the whole weight at every call.
    int4  asymmetric, one scale and one zero per `INT4_GROUP` inputs (tinygemm's formats).
    fp8   e4m3, one scale per output; the GPU multiplies in fp8, so each row of the activations is
          rounded to e4m3, too, with a scale of its own.

torchao (https://github.com/pytorch/ao) is imported by the first call of `quantize` only.
"""

from __future__ import annotations

from typing import Any, Literal, TypeGuard, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Method = Literal["int8", "int4", "fp8"]
METHODS: tuple[Method, ...] = get_args(Method)
INT4_GROUP = 64
ALL = slice(None)

_SLICE = 64  # rows of the widest block in which a kernel for int4 stores them
_PIECE_ROWS = 128  # of what is computed piece by piece


def is_method(name: str) -> TypeGuard[Method]:
    """Whether there is such a method."""
    return name in METHODS


def unfit(method: Method, out_features: int, in_features: int) -> str | None:
    """Why a weight of these sizes has no kernel, as half a sentence; None where it has."""
    multiples = {"int8": (1, 16), "int4": (16, INT4_GROUP), "fp8": (16, 16)}[method]
    for name, size, multiple in zip(
        ("outputs", "inputs"), (out_features, in_features), multiples, strict=True
    ):
        if size % multiple:
            return f"{method} needs a multiple of {multiple} {name}, and it has {size}"
    return None


def quantize(weight: Tensor, method: Method, inputs: slice = ALL) -> Tensor:
    """Round `weight` [out, in] to a torchao tensor on the same device.

    Args:
        weight: all of it, even where a part is kept.
        method: how.
        inputs: keep these alone, rounded as in the whole: a scale of int8 and fp8 is of all the
            inputs. In int4 they begin where a group does.

    Raises:
        ImportError: there is no torchao.
        ValueError: see `unfit`, or a group of int4 would be cut.
    """
    n, k = weight.shape
    kept = range(k)[inputs]
    if reason := unfit(method, n, len(kept)):
        raise ValueError(reason)
    if method == "int8":
        return _int8(weight, inputs)
    if method == "fp8":
        return _fp8(weight, inputs)
    if kept.start % INT4_GROUP:
        raise ValueError(f"input {kept.start} lies inside a group of {INT4_GROUP}")
    return _int4(weight[:, inputs].contiguous())


def product(x: Tensor, weight: Any, method: Method) -> Tensor:
    """`x W^T` [T, out] in the dtype of `x` [T, in], contiguous."""
    if method == "int8" and not x.is_cuda:
        return torch.ops.aten._weight_int8pack_mm(x, weight.qdata, weight.scale.view(-1))
    return F.linear(x, weight)


def dequantize(weight: Any, method: Method) -> Tensor:
    """What `product` multiplies by: float32 [out, in], exact.

    The layouts of int4 are private to their kernels, so the identity is multiplied: in float32 on
    the CPU, whose kernel computes `code * scale + zero` in it, in bf16 on a GPU, whose kernel
    rounds them to it.
    """
    if method != "int4":
        return weight.dequantize(torch.float32)
    if not weight.is_cuda:
        weight = _with_int4(weight, weight.qdata, weight.scale_and_zero.float(), weight.shape[0])
    n, k = weight.shape
    out = torch.empty(n, k, dtype=torch.float32, device=weight.device)
    for first in range(0, k, _PIECE_ROWS):
        ones = torch.zeros(min(_PIECE_ROWS, k - first), k, dtype=weight.dtype, device=weight.device)
        ones[:, first:].fill_diagonal_(1)
        out[:, first : first + len(ones)] = F.linear(ones, weight).T
    return out


def int8_parts(weight: Any) -> tuple[Tensor, Tensor]:
    """The codes [out, in] of an int8 weight, and its scales, float32 [out]."""
    return weight.qdata, weight.scale.view(-1).float()


def rows(weight: Any, method: Method, first: int, last: int) -> Tensor | None:
    """Outputs [first, last) of a quantised weight; None where its layout cannot be cut there."""
    if method != "int4":
        return weight[first:last]
    if first % _SLICE or (last % _SLICE and last != weight.shape[0]):
        return None
    if weight.is_cuda:
        return weight[first:last]
    scales = weight.scale_and_zero[:, first:last].contiguous()
    return _with_int4(weight, weight.qdata[first:last], scales, last - first)


def _with_int4(weight: Any, codes: Tensor, scales: Tensor, out_features: int) -> Any:
    """Another weight of the CPU's int4 format."""
    shape = torch.Size((out_features, weight.shape[1]))
    return type(weight)(codes, scales, weight.block_size, shape)


def _int8(weight: Tensor, inputs: slice) -> Tensor:
    from torchao.quantization import Int8Tensor, PerRow

    # The kernel takes scales in the dtype of the activations: the codes are chosen for those, in
    # float32, as bf16 cannot tell codes above 64 and a half from the next. In pieces: temporaries
    # as large as the weight leave holes in the heap, which took seven times the codes' memory.
    codes = weight.new_empty(weight[:, inputs].shape, dtype=torch.int8)
    scales = weight.new_empty(len(weight), 1)
    for first in range(0, len(weight), _PIECE_ROWS):
        piece = slice(first, first + _PIECE_ROWS)
        wide = weight[piece].float()
        scales[piece] = Int8Tensor.from_hp(wide, PerRow()).scale
        kept = Int8Tensor.from_hp(wide[:, inputs], PerRow(), scale=scales[piece].float())
        codes[piece] = kept.qdata
    return Int8Tensor(codes, scales, [1, codes.shape[1]], weight.dtype)


def _int4(weight: Tensor) -> Tensor:
    if weight.is_cuda:
        from torchao.quantization import Int4TilePackedTo4dTensor as Int4Tensor
    else:
        from torchao.prototype.quantization.int4.int4_opaque_tensor import (
            Int4OpaqueTensor as Int4Tensor,
        )
    return Int4Tensor.from_hp(weight, [1, INT4_GROUP])


def _fp8(weight: Tensor, inputs: slice) -> Tensor:
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization import Float8Tensor, PerRow
    from torchao.quantization.quantize_.common import KernelPreference
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

    # torch's kernels, whatever else is installed.
    kernel = KernelPreference.TORCH
    whole = Float8Tensor.from_hp(
        weight,
        granularity=PerRow(),
        mm_config=Float8MMConfig(use_fast_accum=False),
        act_quant_kwargs=QuantizeTensorToFloat8Kwargs(
            granularity=PerRow(), kernel_preference=kernel
        ),
        kernel_preference=kernel,
    )
    return whole[:, inputs].contiguous()
