"""Changed rows of the embedding and of the head, by slot, in place.

Bytes: 8 K per token that has a changed row (its float32 row and, 16-bit, `y`); at the head 4 r K
per token row for the r changed rows of its adapter, and 2 K for `x`. A program takes one token row:
at the embedding a piece of it, at the head some of the changed rows, four at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from turret_kernels.entries import Entries
from turret_kernels.row_delta import RowTable

_EMBED_BLOCK = 1024
_PARTS = 32  # programs per row of logits
_CHANGED = 4
_HEAD_BLOCK = 512


@triton.jit
def embed_row_delta_kernel(
    y_ptr,  # [T, K]
    stride,
    token_ptr,  # int64 [T]
    pointers_ptr,  # int64 [S, 3]: addresses of ids and delta, how many
    of_rows_ptr,  # int32 [T, 2]
    slot_ptr,  # int32 [E]
    weight_ptr,  # float32 [E]
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK columns of one token per program."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(token_ptr + row)
    first, entries = tl.load(of_rows_ptr + row * 2), tl.load(of_rows_ptr + row * 2 + 1)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = y_ptr + row * stride + column
    for entry in range(first, first + entries):
        address = pointers_ptr + tl.load(slot_ptr + entry).to(tl.int64) * 3
        ids_ptr = tl.load(address).to(tl.pointer_type(tl.int64))
        low, count = tl.zeros([], tl.int64), tl.load(address + 2)
        high = count
        while low < high:
            middle = (low + high) // 2
            if tl.load(ids_ptr + middle) < token:
                low = middle + 1
            else:
                high = middle
        found = tl.load(ids_ptr + low, mask=low < count, other=-1)
        if (found == token) & (token >= 0):
            delta_ptr = tl.multiple_of(tl.load(address + 1).to(tl.pointer_type(tl.float32)), 16)
            delta = tl.load(delta_ptr + low * K + column, mask=column < K, other=0.0)
            y = tl.load(place, mask=column < K, other=0.0)
            y = (y.to(tl.float32) + tl.load(weight_ptr + entry) * delta).to(y.dtype)
            tl.store(place, y, mask=column < K)


@triton.jit
def head_row_delta_kernel(
    y_ptr,  # float32 [T, vocab]
    y_stride,
    x_ptr,  # [T, K]
    x_stride,
    pointers_ptr,  # int64 [S, 3]: addresses of ids and delta, how many
    of_rows_ptr,  # int32 [T, 2]
    slot_ptr,  # int32 [E]
    weight_ptr,  # float32 [E]
    K: tl.constexpr,
    PARTS: tl.constexpr,
    CHANGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A PARTS-th of what changes in one row of logits per program."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, entries = tl.load(of_rows_ptr + row * 2), tl.load(of_rows_ptr + row * 2 + 1)
    acting = 0
    for entry in range(first, first + entries):
        if tl.load(pointers_ptr + tl.load(slot_ptr + entry).to(tl.int64) * 3) != 0:
            acting += 1
    # Two adapters may change the same logit, so one program does all of it, in order.
    step = tl.where(acting > 1, 1, PARTS)
    if part >= step:
        return
    for entry in range(first, first + entries):
        address = pointers_ptr + tl.load(slot_ptr + entry).to(tl.int64) * 3
        ids_ptr = tl.load(address).to(tl.pointer_type(tl.int64))
        delta_ptr = tl.multiple_of(tl.load(address + 1).to(tl.pointer_type(tl.float32)), 16)
        count = tl.load(address + 2).to(tl.int32)
        weight = tl.load(weight_ptr + entry)
        for start in range(part * CHANGED, count, step * CHANGED):
            changed = start + tl.arange(0, CHANGED)
            total = tl.zeros([CHANGED, BLOCK], tl.float32)
            for k in range(0, K, BLOCK):
                column = tl.broadcast_to((k + tl.arange(0, BLOCK))[None, :], (CHANGED, BLOCK))
                mask = (changed < count)[:, None] & (column < K)
                delta = tl.load(
                    delta_ptr + changed.to(tl.int64)[:, None] * K + column, mask=mask, other=0.0
                )
                x = tl.load(x_ptr + row * x_stride + column, mask=column < K, other=0.0)
                total += x.to(tl.float32) * delta
            ids = tl.load(ids_ptr + changed, mask=changed < count, other=0)
            place = y_ptr + row * y_stride + ids
            y = tl.load(place, mask=changed < count, other=0.0)
            tl.store(place, y + weight * tl.sum(total, axis=1), mask=changed < count)
        tl.debug_barrier()  # the next entry reads what other threads have just written


def embed_row_delta(
    y: Tensor, token_ids: Tensor, table: RowTable, entries: Entries, weight: Tensor
) -> None:
    """Arguments as in `turret_kernels.row_delta.embed_row_delta`; `weight` is float32 [E]."""
    rows, k = y.shape
    embed_row_delta_kernel[(rows, triton.cdiv(k, _EMBED_BLOCK))](
        y,
        y.stride(0),
        token_ids,
        table.pointers,
        entries.of_rows(rows),
        entries.slot,
        weight,
        K=k,
        BLOCK=_EMBED_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )


def head_row_delta(y: Tensor, x: Tensor, table: RowTable, entries: Entries, weight: Tensor) -> None:
    """Arguments as in `turret_kernels.row_delta.head_row_delta`; `weight` is float32 [E]."""
    rows, k = x.shape
    head_row_delta_kernel[(rows, _PARTS)](
        y,
        y.stride(0),
        x,
        x.stride(0),
        table.pointers,
        entries.of_rows(rows),
        entries.slot,
        weight,
        K=k,
        PARTS=_PARTS,
        CHANGED=_CHANGED,
        BLOCK=_HEAD_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
