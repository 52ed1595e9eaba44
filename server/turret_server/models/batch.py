"""What one step brings to the decoder: token rows, and where their keys and values lie."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from turret_adapters.plan import BASE, BasePlan
from turret_kernels.paged_attention import AttentionMetadata


@dataclass(slots=True)
class Batch:
    """T token rows of several sequences, those of one sequence together and in order.

    Attributes:
        token_ids: int64 [T]; 0 for virtual tokens, whose contents the adapters write.
        positions: int64 [T], of each token in its sequence.
        slots: int64 [T], where its key and value go: block * block_tokens + offset.
        attention: where each sequence lies, in the rows and in the cache.
        logit_rows: int64 [L] on the host, ascending, the rows whose logits are wanted; L may be 0.
        adapters: what acts on which rows.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    attention: AttentionMetadata
    logit_rows: Tensor | None
    adapters: BasePlan = BASE
