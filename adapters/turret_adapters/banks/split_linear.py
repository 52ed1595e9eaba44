"""The linears of a group where they read different inputs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from turret_adapters.groups import Group, first_column
from turret_adapters.spec import LINEARS, ModelShape, Module
from turret_kernels import native
from turret_kernels.linear import LinearWeight, linear, slice_linear


def split_linear(
    shape: ModelShape,
    group: Group,
    x: Tensor,
    inputs: Mapping[Module, Tensor],
    weight: LinearWeight,
    bias: Tensor | None,
) -> Tensor:
    """The outputs of a group's linears, each of its own input.

    The weights are read once, as by one product, but in one product per linear.

    Args:
        shape: the base.
        group: which linears.
        x: [T, in], contiguous, what the others read.
        inputs: [T, in] by module, for those that read something else.
        weight: of the linears, one under the other.
        bias: theirs.

    Returns:
        [T, out of the group].
    """
    size = x.shape[0], weight.out_features
    y = native.allocate(size, x.dtype) if x.device.type == "cpu" else x.new_empty(size)
    for module in group.modules:
        first = first_column(shape, module)
        last = first + shape.width(module)
        part = slice_linear(weight, first, last)
        part_bias = None if bias is None else bias[first:last]
        linear(inputs.get(module, x), part, part_bias, out=y[:, first:last])
    return y


def splits_natively(shape: ModelShape) -> bool:
    """Are the widths those of which the native product takes slices?"""
    return all(shape.width(m) % 16 == 0 for m in LINEARS if m in shape.dims)
