"""Activation sparsity by slot: CATS behind the gate of an MLP, TEAL before a linear.

Thresholds lie in float32 tables [S], negative where a slot has none; what does not exceed the
threshold in magnitude becomes 0. Rows in no entry keep everything; NaN is kept everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from turret_kernels import gpu, native
from turret_kernels.activation import ACTIVATIONS, NUMBER, Activation
from turret_kernels.entries import Entries
from turret_kernels.native import lib


def act_threshold_mul(
    gate_up: Tensor, thresholds: Tensor, entries: Entries, activation: Activation
) -> Tensor:
    """`act(gate) * 1[|act(gate)| > t] * up` (CATS, Lee et al., 2024, with its code's strict >).

    Args:
        gate_up: [T, 2 I], gate first; contiguous.
        thresholds: float32 [S].
        entries: which slot's threshold holds for which rows; at most one with a threshold per row.
        activation: of the gate.

    Returns:
        [T, I] in the same dtype.
    """
    if gpu.takes(gate_up):
        from turret_kernels.gpu import threshold

        return threshold.act_threshold_mul(gate_up, thresholds, entries, activation)
    rows, width = gate_up.shape
    if not _native(gate_up) or lib is None:
        gate, up = gate_up.chunk(2, dim=-1)
        gate = ACTIVATIONS[activation](gate)
        bounds = _row_bounds(thresholds, entries, rows)
        return torch.where(gate.abs() <= bounds, 0, gate) * up
    out = native.allocate((rows, width // 2), gate_up.dtype)
    sizes = rows, width // 2, NUMBER[activation]
    _launch(lib.turret_act_threshold_mul, out, gate_up, sizes, thresholds, entries)
    return out


def threshold(x: Tensor, thresholds: Tensor, entries: Entries) -> Tensor:
    """`x * 1[|x| > t]` (TEAL, Liu et al., 2024): a copy of `x` [T, N] with small values zeroed.

    Arguments as in `act_threshold_mul`.
    """
    if gpu.takes(x):
        from turret_kernels.gpu import threshold as gpu_threshold

        return gpu_threshold.threshold(x, thresholds, entries)
    rows, width = x.shape
    if not _native(x) or lib is None:
        return torch.where(x.abs() <= _row_bounds(thresholds, entries, rows), 0, x)
    out = native.allocate((rows, width), x.dtype)
    _launch(lib.turret_threshold, out, x, (rows, width), thresholds, entries)
    return out


def _launch(
    kernel: Callable[..., None],
    out: Tensor,
    x: Tensor,
    sizes: tuple[int, ...],
    thresholds: Tensor,
    entries: Entries,
) -> None:
    kernel(
        out.data_ptr(),
        x.data_ptr(),
        *sizes,
        thresholds.data_ptr(),
        entries.slot.data_ptr(),
        entries.row_start.data_ptr(),
        entries.row_count.data_ptr(),
        entries.count.data_ptr(),
    )


def _native(x: Tensor) -> bool:
    return lib is not None and x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _row_bounds(thresholds: Tensor, entries: Entries, rows: int) -> Tensor:
    """float32 [rows, 1]: the threshold of every row, -1 where there is none."""
    bounds = torch.full((rows, 1), -1.0, device=thresholds.device)
    for slot, row, count in zip(
        entries.slot.tolist(), entries.row_start.tolist(), entries.row_count.tolist(), strict=True
    ):
        if thresholds[slot] >= 0:
            bounds[row : row + count] = thresholds[slot]
    return bounds
