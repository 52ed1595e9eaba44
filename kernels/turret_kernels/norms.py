"""RMSNorm, with the residual addition that precedes it in a decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from turret_kernels import gpu, native
from turret_kernels.native import lib


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension; statistics in float32.

    Where the product is rounded is the models' difference, and the weight's dtype says it: a
    weight in the dtype of `x` multiplies the rounded norm (Llama), a float32 weight beside a
    narrower `x` the unrounded one (Gemma, whose gains are 1 + w in float32).

    Args:
        x: [T, N] or [T, heads, N]; the last dimension is contiguous.
        weight: [N], in the dtype of `x` or in float32.
        eps: added to the mean square.
    """
    if gpu.takes(x):
        from turret_kernels.gpu import norms

        return norms.rms_norm(x, weight, eps)
    if not _native(x):
        return rms_norm_reference(x, weight, eps)
    out = native.allocate(tuple(x.shape), x.dtype)
    _launch(out, x, None, weight, eps)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`residual += x` in place, then `rms_norm(residual)`.

    Args:
        x: [T, N] output of the previous sub-layer.
        residual: [T, N], updated in place.
        weight: [N], as for `rms_norm`.
        eps: added to the mean square.
    """
    if gpu.takes(x):
        from turret_kernels.gpu import norms

        return norms.add_rms_norm(x, residual, weight, eps)
    if not _native(x):
        residual += x
        return rms_norm_reference(residual, weight, eps)
    out = native.allocate(tuple(x.shape), x.dtype)
    _launch(out, x, residual, weight, eps)
    return out


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As transformers' LlamaRMSNorm (normalised in float32, rounded, scaled), or Gemma3RMSNorm.

    float64 inputs are normalised in float64: the truth for float32.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if weight.dtype == x.dtype:
        return weight * wide.to(x.dtype)
    return (weight * wide).to(x.dtype)


def _native(x: Tensor) -> bool:
    return lib is not None and x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _launch(out: Tensor, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> None:
    assert lib is not None
    heads, head_stride = (x.shape[1], x.stride(1)) if x.dim() == 3 else (1, 0)
    lib.turret_rms_norm(
        out.data_ptr(),
        x.data_ptr(),
        None if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        weight.dtype == torch.float32,
        x.shape[0] * heads,
        heads,
        x.shape[-1],
        x.stride(0),
        head_stride,
        eps,
    )
