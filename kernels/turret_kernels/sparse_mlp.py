"""The gated MLP of rows with a CATS threshold: behind the gate, only live neurons are read.

`y = W_down (g * (W_up x))`, `g = act(W_gate x)` where its magnitude exceeds the row's threshold
and 0 elsewhere (Lee et al., 2024). A neuron is live if any row of the call keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from turret_kernels import gpu, native
from turret_kernels.activation import NUMBER, Activation
from turret_kernels.entries import Entries
from turret_kernels.linear import LinearWeight, linear, slice_linear, unpack_linear
from turret_kernels.native import TILES, lib
from turret_kernels.threshold import act_threshold_mul

# More rows keep nearly every neuron alive, and their sums no longer fit a GPU's registers.
MAX_ROWS = 4
# Widest hidden state whose sums do.
_MAX_HIDDEN = 8192
# By number of rows: the live share of the neurons from which reading all of them in order is as
# fast (bench/sparse_mlp.py). Four rows' sums no longer fit the first cache beside the weights.
DENSE_ABOVE = (0.9, 0.9, 0.9, 0.75)


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """A gated MLP as `linear` reads it.

    Attributes:
        gate_up: [2 I, H], gate first.
        gate_up_bias: [2 I] or None.
        down: [H, I].
        down_bias: [H] or None.
        activation: of the gate.
    """

    gate_up: LinearWeight
    gate_up_bias: Tensor | None
    down: LinearWeight
    down_bias: Tensor | None
    activation: Activation


def pack_neurons(up: Tensor, down: Tensor) -> Tensor | None:
    """What `sparse_mlp` reads neuron by neuron; None where it would not help.

    Args:
        up: [I, H].
        down: [H, I].

    Returns:
        [I, 2, H], the weights behind the gate; on a GPU [I, H], those of down: the others are read
        where they are.
    """
    inner, hidden = up.shape
    if not neurons_bytes(up, down):
        return None
    if gpu.takes(up):
        return down.t().contiguous()
    assert lib is not None
    neurons = torch.empty((inner, 2, hidden), dtype=up.dtype)
    up, down = up.contiguous(), down.contiguous()
    lib.turret_pack_neurons(neurons.data_ptr(), up.data_ptr(), down.data_ptr(), inner, hidden)
    return neurons


def neurons_bytes(up: Tensor, down: Tensor) -> int:
    """Memory of what `pack_neurons` makes; 0 where it makes nothing."""
    inner, hidden = up.shape
    if gpu.takes(up):
        is_wide = hidden % (16 // up.itemsize) == 0 and hidden <= _MAX_HIDDEN
        return down.nbytes if is_wide else 0
    if lib is None or up.dtype != torch.bfloat16 or up.device.type != "cpu":
        return 0
    return 0 if inner % 32 or hidden % 32 else up.nbytes + down.nbytes


def sparse_mlp(
    x: Tensor,
    weights: MlpWeights,
    neurons: Tensor | None,
    thresholds: Tensor,
    entries: Entries,
    dense_above: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The whole MLP, accumulated in float32; the gate's activation and the product are rounded.

    Args:
        x: [T, H], contiguous; T is at most MAX_ROWS.
        weights: of the MLP.
        neurons: the same weights from `pack_neurons`.
        thresholds: float32 [S], negative where a slot has none.
        entries: which slot's threshold holds for which rows; at most one with a threshold per row.
        dense_above: live share of the neurons above which all are read, None for the measured one;
            a GPU reads the live ones whatever their share.

    Returns:
        The output [T, H] and the product [T, I] that down read, in the dtype of `x`.
    """
    if neurons is None:
        return sparse_mlp_reference(x, weights, thresholds, entries)
    rows, hidden = x.shape
    if rows > MAX_ROWS:
        raise ValueError(f"{rows} rows; the kernel takes {MAX_ROWS}")
    inner = weights.down.in_features
    if gpu.takes(x):
        from turret_kernels.gpu import sparse_mlp as gpu_sparse_mlp

        bias = weights.gate_up_bias
        gate_bias, up_bias = (None, None) if bias is None else (bias[:inner], bias[inner:])
        return gpu_sparse_mlp.sparse_mlp(
            x,
            linear(x, slice_linear(weights.gate_up, 0, inner), gate_bias),
            unpack_linear(slice_linear(weights.gate_up, inner, 2 * inner)),
            up_bias,
            neurons,
            weights.down_bias,
            thresholds,
            entries,
            weights.activation,
        )
    if lib is None:
        return sparse_mlp_reference(x, weights, thresholds, entries)
    y = native.allocate((rows, hidden), x.dtype)
    product = native.allocate((rows, inner), x.dtype)
    lib.turret_sparse_mlp(
        y.data_ptr(),
        product.data_ptr(),
        x.data_ptr(),
        rows,
        hidden,
        inner,
        weights.gate_up.data.data_ptr(),
        weights.down.data.data_ptr(),
        neurons.data_ptr(),
        None if weights.gate_up_bias is None else weights.gate_up_bias.data_ptr(),
        None if weights.down_bias is None else weights.down_bias.data_ptr(),
        thresholds.data_ptr(),
        entries.slot.data_ptr(),
        entries.row_start.data_ptr(),
        entries.row_count.data_ptr(),
        entries.count.data_ptr(),
        NUMBER[weights.activation],
        TILES,
        DENSE_ABOVE[rows - 1] if dense_above is None else dense_above,
    )
    return y, product


def sparse_mlp_reference(
    x: Tensor, weights: MlpWeights, thresholds: Tensor, entries: Entries
) -> tuple[Tensor, Tensor]:
    """Everything is computed, then masked."""
    gate_up = linear(x, weights.gate_up, weights.gate_up_bias)
    product = act_threshold_mul(gate_up, thresholds, entries, weights.activation)
    return linear(product, weights.down, weights.down_bias), product
