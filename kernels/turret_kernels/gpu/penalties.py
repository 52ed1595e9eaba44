"""Penalties, biases and bans of tokens: one logit per lane.

Bytes: 20 read per change, and a 32-byte sector of the logits read and written. The changes of a row
are all the tokens it has seen, at most: some 10,000 changes take a launch's 2 µs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 128


@triton.jit(do_not_specialize=["count"])
def apply_penalties_kernel(
    logits_ptr,  # float32 [R, V], changed in place
    changes_ptr,  # int32 [5, count]: row, token; the bits of repetition, penalty and bias
    count,
    stride,
    BLOCK: tl.constexpr,
):
    """BLOCK changes per program."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    changes = changes_ptr + index
    row = tl.load(changes, mask=index < count, other=-1)
    mask = row >= 0
    token = tl.load(changes + count, mask=mask, other=0)
    one = 0x3F800000  # 1.0
    repetition = tl.load(changes + 2 * count, mask=mask, other=one).to(tl.float32, bitcast=True)
    penalty = tl.load(changes + 3 * count, mask=mask, other=0).to(tl.float32, bitcast=True)
    bias = tl.load(changes + 4 * count, mask=mask, other=0).to(tl.float32, bitcast=True)
    at = logits_ptr + row.to(tl.int64) * stride + token
    x = tl.load(at, mask=mask, other=0.0)
    x = tl.where(x > 0, x / repetition, x * repetition)
    tl.store(at, x - penalty + bias, mask=mask)


def apply_penalties(logits: Tensor, changes: Tensor) -> None:
    """float32 [R, V], the last dimension contiguous; int32 [5, E], contiguous."""
    count = changes.shape[1]
    if count:
        apply_penalties_kernel[(triton.cdiv(count, _BLOCK),)](
            logits,
            changes,
            count,
            logits.stride(0),
            BLOCK=_BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
